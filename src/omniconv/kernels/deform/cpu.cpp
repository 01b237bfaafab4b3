// Deformable convolution and its gradients (reference.py has the equations).
//
// Each sample of x is laid out pixel by pixel with a border of zeros (problem.h), so that a corner
// of a cell is a run of channels, read by whole vectors. A tile of output positions goes through
// the taps: places and weights for all points at once (sample.h), samples into a scratch of the
// thread, and a small matrix product with the weight (gemm.h). There is no copy of the samples of
// more than a tile.

#include "backward.h"
#include "forward.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>

namespace {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Maybe dense(const Maybe& tensor) { return tensor ? Maybe(dense(*tensor)) : Maybe(); }

template <class T>
const T* address(const Maybe& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* target(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

void check_shape(const char* name, const Tensor& tensor, const Tensor& like, const Ints& shape) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(
      Ints(sizes.begin(), sizes.end()) == shape && tensor.scalar_type() == like.scalar_type(),
      name, " does not fit x");
}

// Channels side by side, pixel after pixel.
bool channels_last(const Tensor& x) {
  int64_t step = 1;
  for (int64_t a = x.dim(); a >= 2; a--) {
    const int64_t axis = a == x.dim() ? 1 : a;
    if (x.stride(axis) != step) return false;
    step *= x.size(axis);
  }
  return x.stride(0) == step;
}

struct Call {
  Problem s;
  bool last;
  Tensor x, offset;
  Maybe mask, weight;
  Ints y_shape;

  Call(
      const Tensor& x_, const Tensor& offset_, const Maybe& mask_, const Maybe& weight_,
      const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
      int64_t groups, int64_t offset_groups)
      : last(x_.dim() > 2 && channels_last(x_)),
        x(last ? x_ : dense(x_)),
        offset(dense(offset_)),
        mask(dense(mask_)),
        weight(dense(weight_)) {
    const int64_t dim = x.dim() - 2;
    STD_TORCH_CHECK(dim >= 1 && dim <= 3, "x must have one to three spatial axes");
    const auto axes = size_t(dim);
    STD_TORCH_CHECK(
        kernel.size() == axes && stride.size() == axes && dilation.size() == axes &&
            padding.size() == 2 * axes,
        "kernel_size, stride and dilation must have an entry per axis, padding two");
    s = {x.size(0), x.size(1), weight ? weight->size(0) : 0, dim, groups, offset_groups};
    STD_TORCH_CHECK(
        groups >= 1 && offset_groups >= 1 && s.channels >= 1 && s.channels % groups == 0 &&
            s.channels % offset_groups == 0 && (!weight || s.outputs % groups == 0),
        "groups and offset_groups must divide the channels");
    STD_TORCH_CHECK(weight || groups == 1, "groups need a weight");
    STD_TORCH_CHECK(!weight || s.outputs >= 1, "weight must have outputs");
    y_shape = {s.batch, weight ? s.outputs : s.channels};
    for (int64_t a = 0; a < dim; a++) {
      STD_TORCH_CHECK(
          kernel[a] >= 1 && stride[a] >= 1 && dilation[a] >= 1, "a size must be at least 1");
      s.size[a] = x.size(a + 2);
      s.kernel[a] = kernel[a];
      s.stride[a] = stride[a];
      s.dilation[a] = dilation[a];
      s.low[a] = padding[2 * a];
      const int64_t room =
          s.size[a] + padding[2 * a] + padding[2 * a + 1] - dilation[a] * (kernel[a] - 1) - 1;
      STD_TORCH_CHECK(room >= -1, "x is smaller than the kernel");
      s.out[a] = room < 0 ? 0 : room / stride[a] + 1;
      STD_TORCH_CHECK(s.size[a] < 1 << 24, "x is too large");
      y_shape.push_back(s.out[a]);
    }
    if (doubles())
      s.finish<double>();
    else
      s.finish<float>();
    STD_TORCH_CHECK(s.pixels < int64_t(1) << 31, "x is too large");
    Ints shape = y_shape;
    shape[1] = offset_groups * s.taps * dim;
    check_shape("offset", offset, x, shape);
    shape[1] = offset_groups * s.taps;
    if (mask) check_shape("mask", *mask, x, shape);
    shape = kernel;
    shape.insert(shape.begin(), {s.outputs, s.channels / groups});
    if (weight) check_shape("weight", *weight, x, shape);
  }

  bool doubles() const {
    const auto type = x.scalar_type();
    const bool wide = type == torch::headeronly::ScalarType::Double;
    STD_TORCH_CHECK(
        wide || type == torch::headeronly::ScalarType::Float, "x must be float32 or float64");
    return wide;
  }

  template <class T>
  Data<T> data() const {
    Data<T> d{address<T>(x), address<T>(offset), address<T>(mask), address<T>(weight)};
    int64_t area = 1;
    for (int64_t a = 0; a < s.dim; a++) area *= s.size[a];
    d.sample_step = area * s.channels;
    d.channel_step = last ? 1 : area;
    d.pixel_step = last ? s.channels : 1;
    return d;
  }

  Tensor room(int64_t numbers) const { return torch::stable::new_empty(x, Ints{numbers}); }

  Tensor gradient(const Maybe& tensor, bool needed) const {
    STD_TORCH_CHECK(tensor || !needed, "there is no gradient of what is missing");
    if (!needed) return room(0);
    const auto sizes = tensor->sizes();
    return torch::stable::new_empty(x, Ints(sizes.begin(), sizes.end()));
  }
};

template <class T, int D>
void forward(const Call& call, const Data<T>& d) {
  const int64_t numbers = call.s.numbers<T>();
  const int64_t most = 4 * MEGABYTE / (numbers * int64_t(sizeof(T)));
  const int64_t wave = std::clamp<int64_t>(most, 1, call.s.batch);
  const Tensor kept = call.room(wave * numbers);
  Forward<T, D>(call.s, d).run(target<T>(kept), wave);
}

template <class T>
void forward(const Call& call, const Maybe& bias, const Tensor& y) {
  Data<T> d = call.data<T>();
  d.bias = address<T>(bias);
  d.y = target<T>(y);
  if (!d.y) return;
  const auto run =
      call.s.dim == 1 ? forward<T, 1> : call.s.dim == 2 ? forward<T, 2> : forward<T, 3>;
  run(call, d);
}

template <class T, int D>
void backward(const Call& call, const Data<T>& d) {
  const Jobs<T> jobs(call.s, d.by_x, d.by_weight);
  const int64_t numbers = call.s.numbers<T>(), count = jobs.wave * jobs.parts;
  const Tensor kept = call.room(jobs.wave * numbers);
  const Tensor by_x = call.room(d.by_x ? count * numbers : 0);
  const Tensor by_weight = call.room(count * jobs.weights);
  Backward<T, D>(call.s, d, jobs).run(target<T>(kept), target<T>(by_x), target<T>(by_weight));
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
void backward(const Call& call, const Tensor& grad, const Gradients& found) {
  Data<T> d = call.data<T>();
  d.grad = address<T>(grad);
  d.by_x = target<T>(std::get<0>(found));
  d.by_offset = target<T>(std::get<1>(found));
  d.by_mask = target<T>(std::get<2>(found));
  d.by_weight = target<T>(std::get<3>(found));
  const auto run =
      call.s.dim == 1 ? backward<T, 1> : call.s.dim == 2 ? backward<T, 2> : backward<T, 3>;
  if (d.by_x || d.by_offset || d.by_mask || d.by_weight) run(call, d);
}

Tensor deform(
    Tensor x, Tensor offset, Maybe mask, Maybe weight, Maybe bias, Ints kernel, Ints stride,
    Ints padding, Ints dilation, int64_t groups, int64_t offset_groups) {
  const Call call(
      x, offset, mask, weight, kernel, stride, padding, dilation, groups, offset_groups);
  if (bias) {
    STD_TORCH_CHECK(weight, "bias needs a weight");
    check_shape("bias", *bias, x, {call.s.outputs});
    bias = dense(bias);
  }
  const Tensor y = torch::stable::new_empty(x, call.y_shape);
  if (call.doubles())
    forward<double>(call, bias, y);
  else
    forward<float>(call, bias, y);
  return y;
}

Gradients deform_backward(
    Tensor grad, Tensor x, Tensor offset, Maybe mask, Maybe weight, Ints kernel, Ints stride,
    Ints padding, Ints dilation, int64_t groups, int64_t offset_groups, std::vector<bool> needed) {
  const Call call(
      x, offset, mask, weight, kernel, stride, padding, dilation, groups, offset_groups);
  check_shape("grad", grad, x, call.y_shape);
  STD_TORCH_CHECK(needed.size() == 4, "needed must have four entries");
  const Tensor above = dense(grad);
  const Gradients found{
      call.gradient(x, needed[0]), call.gradient(offset, needed[1]), call.gradient(mask, needed[2]),
      call.gradient(weight, needed[3])};
  if (call.doubles())
    backward<double>(call, above, found);
  else
    backward<float>(call, above, found);
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(omniconv_cpu, m) {
  m.def(
      "deform(Tensor x, Tensor offset, Tensor? mask, Tensor? weight, Tensor? bias, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
      "int offset_groups) -> Tensor");
  m.def(
      "deform_backward(Tensor grad, Tensor x, Tensor offset, Tensor? mask, Tensor? weight, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
      "int offset_groups, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(omniconv_cpu, CPU, m) {
  m.impl("deform", TORCH_BOX(&deform));
  m.impl("deform_backward", TORCH_BOX(&deform_backward));
}
