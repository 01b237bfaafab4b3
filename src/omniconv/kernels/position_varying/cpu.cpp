// Position-varying depthwise convolution, and its gradients (reference.py has the equation).
//
// A task is a box of positions of one set of weights. Its weights and the values under them are
// copied into dense memory of the thread: the weights lie in as many streams as there are taps, far
// apart in the tensor, and a box of them stays in the cache while all channels that share it (a
// group's, for weights that the batch shares the whole batch's) pass. Padding, stride and dilation
// end there: values are split by their remainder modulo the stride, so that a tap is one distance,
// the same for all positions of the box, and positions are lanes. The gradient for x is the same
// sum with the gradient for y as values and every tap's weights shifted by its distance. No number
// has two writers and all sums have one order, whatever the number of threads.

#include "work.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t BUDGET = 192 * 1024;  // bytes of packed weights, about

template <class S>
Tiling over_positions(const Shape& s) {
  const Axis* a = s.axis;
  return Tiling(
      {a[0].out, a[1].out, a[2].out}, {a[0].reach(), a[1].reach(), a[2].reach()},
      BUDGET / int64_t(sizeof(Exact<S>)) / s.taps(), s.sets * s.groups);
}

template <class S>
void forward(const Shape& s, const Image<S>& y, const Image<S>& x, const Weights<S>& weights) {
  using T = Exact<S>;
  const Work<S> work(s, weights, over_positions<S>(s), true);
  const std::vector<int64_t> offsets = work.offsets(), places = work.places();
  work.run([&](const Memory<T>& memory, int64_t set, int64_t group, const int64_t* start,
               const int64_t* extent) {
    work.pack_weights(set, group, start, extent, memory.weight);
    Box out = work.box(start, extent, y.space);
    out.settle();
    for (int64_t m = 0; m < s.shared(); m += work.packed) {
      S *from[CHANNELS], *to[CHANNELS];
      Job<T> job = work.job(memory, memory.weight, offsets, places);
      job.channels = work.channels(set, group, m, x, from);
      work.channels(set, group, m, y, to);
      work.pack_input(from, job.channels, start, extent, x, memory.values);
      work.by_plane(job, extent[0], work.lay.plane, apply<T>);
      unpack<S>(memory.result, work.lanes, to, job.channels, out);
    }
  });
}

template <class S>
void by_weights(
    const Shape& s, const Weights<S>& gradient, const Image<S>& grad, const Image<S>& x,
    const Weights<S>& weights) {
  using T = Exact<S>;
  Work<S> work(s, weights, over_positions<S>(s), true);
  work.spare = s.taps() * work.lanes;
  const Work<S> target(s, gradient, work.tiling, true);
  const std::vector<int64_t> offsets = work.offsets(), places = work.places();
  work.run([&](const Memory<T>& memory, int64_t set, int64_t group, const int64_t* start,
               const int64_t* extent) {
    std::fill(memory.spare, memory.spare + s.taps() * work.lanes, T(0));
    Box in = work.box(start, extent, grad.space);
    in.settle();
    for (int64_t m = 0; m < s.shared(); m += work.packed) {
      S *from[CHANNELS], *above[CHANNELS];
      Job<T> job = work.job(memory, memory.spare, offsets, places);
      job.channels = work.channels(set, group, m, x, from);
      work.channels(set, group, m, grad, above);
      work.pack_input(from, job.channels, start, extent, x, memory.values);
      pack<S>(above, job.channels, job.channels, in, memory.result, work.lanes);
      work.by_plane(job, extent[0], work.lay.plane, correlate<T>);
    }
    if (s.softmax) {
      work.pack_weights(set, group, start, extent, memory.weight);
      pull_back<T>(memory.weight, memory.spare, work.lanes, s.taps(), work.lanes);
    }
    const std::vector<S*> to = target.addresses(set, group);
    Box out = work.box(start, extent, gradient.space);
    out.settle();
    unpack<S>(memory.spare, work.lanes, to.data(), int64_t(to.size()), out);
  });
}

template <class S>
void by_input(
    const Shape& s, const Image<S>& gradient, const Image<S>& grad, const Weights<S>& weights) {
  using T = Exact<S>;
  const Axis* axis = s.axis;
  // Normalised weights are made once, and interleaved ones turned once, for all that a box reads;
  // others are packed as they are used, tap by tap.
  const bool whole = s.softmax || (weights.space[2] != 1 && axis[2].out > 1);
  const Tiling tiling(
      {axis[0].cells(), axis[1].cells(), axis[2].cells()},
      {axis[0].reach(), axis[1].reach(), axis[2].reach()},
      (whole ? 2 : 1) * BUDGET / int64_t(sizeof(T)) / s.taps(), s.sets * s.groups);
  Work<S> work(s, weights, tiling, false);
  const Lay& lay = work.lay;
  const int64_t each = (work.values_size + work.L - 1) / work.L * work.L;
  work.spare = whole ? s.taps() * each + 4 * work.L : 0;
  const int64_t phases = axis[0].stride * axis[1].stride * axis[2].stride;
  work.run([&](const Memory<T>& memory, int64_t set, int64_t group, int64_t* start,
               const int64_t* extent) {
    for (int a = 0; a < 3; a++) start[a] += axis[a].first_cell();
    Box in = work.box(start, extent, grad.space);
    in.plane = lay.values_plane;
    in.line = lay.values_line;
    for (int a = 0; a < 3; a++) {
      in.start[a] -= tiling.reach[a];
      in.extent[a] += tiling.reach[a];
    }
    in.settle();
    const std::vector<S*> from = work.addresses(set, group);
    if (whole) {
      Box read = in;
      std::copy(weights.space, weights.space + 3, read.stride);
      pack<S>(from.data(), s.taps(), s.taps(), read, memory.spare, each);
    }
    if (s.softmax) normalise<T>(memory.spare, each, s.taps(), each);
    std::vector<int64_t> offsets, places;
    for (int64_t m = 0; m < s.shared(); m += work.packed) {
      S *above[CHANNELS], *to[CHANNELS];
      const int64_t channels = work.channels(set, group, m, grad, above);
      work.channels(set, group, m, gradient, to);
      pack<S>(above, channels, channels, in, memory.values, work.channel_values());
      for (int64_t i = 0; i < axis[0].stride; i++)
        for (int64_t j = 0; j < axis[1].stride; j++)
          for (int64_t k = 0; k < axis[2].stride; k++) {
            const int64_t phase[3] = {i, j, k};
            offsets.clear();
            places.clear();
            for (const Tap& tap : work.taps) {
              int64_t back[3];
              bool here = true;
              for (int a = 0; a < 3; a++) {
                here = here && axis[a].phase(tap.at[a]) == phase[a];
                back[a] = tiling.reach[a] - axis[a].shift(tap.at[a]);
              }
              if (!here) continue;
              const int64_t offset =
                  back[0] * lay.values_plane + back[1] * lay.values_line + back[2];
              const int64_t q = &tap - work.taps.data();
              places.push_back(whole ? q * each + offset : int64_t(offsets.size()) * work.lanes);
              offsets.push_back(offset);
              if (whole || (m > 0 && phases == 1)) continue;
              Box shifted = work.box(start, extent, weights.space);
              for (int a = 0; a < 3; a++) shifted.start[a] -= axis[a].shift(tap.at[a]);
              shifted.settle();
              pack<S>(
                  from.data() + q, 1, s.taps() - q, shifted, memory.weight + places.back(),
                  work.lanes);
            }
            Job<T> job = work.job(memory, whole ? memory.spare : memory.weight, offsets, places);
            job.channels = channels;
            if (whole) job.weight_run = lay.values_line;
            work.by_plane(job, extent[0], whole ? lay.values_plane : lay.plane, apply<T>);
            Box out = work.box(start, extent, gradient.space);
            for (int a = 0; a < 3; a++) {
              out.start[a] = start[a] * axis[a].stride + phase[a] - axis[a].low;
              out.step[a] = axis[a].stride;
              out.limit[a] = axis[a].in;
            }
            out.settle();
            unpack<S>(memory.result, work.lanes, to, channels, out);
          }
    }
  });
}

template <class S>
Image<S> image(const Tensor& tensor, int64_t dim) {
  Image<S> found{static_cast<S*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), {}};
  for (int64_t a = 0; a < dim; a++) found.space[3 - dim + a] = tensor.stride(2 + a);
  return found;
}

template <class S>
Weights<S> kernels(const Tensor& tensor, int64_t dim) {
  Weights<S> found{static_cast<S*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), {}, {}};
  for (int64_t a = 0; a < dim; a++) {
    found.tap[3 - dim + a] = tensor.stride(2 + a);
    found.space[3 - dim + a] = tensor.stride(2 + dim + a);
  }
  return found;
}

using Ints = std::vector<int64_t>;

// The shape of a convolution of images like `x` to images like `y`, checked.
Shape shape_of(
    const Tensor& x, const Tensor& y, const Tensor& weight, const Ints& stride, const Ints& padding,
    const Ints& dilation, bool softmax) {
  const int64_t dim = x.dim() - 2;
  STD_TORCH_CHECK(dim >= 1 && dim <= 3, "x must have one to three spatial axes");
  STD_TORCH_CHECK(
      weight.dim() == 2 + 2 * dim && y.dim() == 2 + dim, "weight and output do not fit x");
  STD_TORCH_CHECK(
      int64_t(stride.size()) == dim && int64_t(padding.size()) == 2 * dim &&
          int64_t(dilation.size()) == dim,
      "stride, padding and dilation must fit the axes");
  Shape s{{}, x.size(0), x.size(1), weight.size(1), weight.size(0), softmax};
  for (Axis& axis : s.axis) axis = {1, 1, 1, 1, 1, 0};
  for (int64_t a = 0; a < dim; a++) {
    Axis& axis = s.axis[3 - dim + a];
    axis = {x.size(2 + a), weight.size(2 + a), y.size(2 + a),
            stride[a],     dilation[a],        padding[2 * a]};
    STD_TORCH_CHECK(
        axis.stride >= 1 && axis.dilation >= 1 && axis.low >= 0 && padding[2 * a + 1] >= 0 &&
            axis.taps >= 1,
        "stride and dilation must be at least 1, padding at least 0");
    const int64_t room = axis.in + axis.low + padding[2 * a + 1] - axis.dilation * (axis.taps - 1);
    STD_TORCH_CHECK(
        room >= 1 && axis.out == (room - 1) / axis.stride + 1 &&
            axis.out == weight.size(2 + dim + a),
        "weight and output must have the output's spatial size");
  }
  STD_TORCH_CHECK(
      s.batch == y.size(0) && s.channels == y.size(1) && s.groups >= 1 &&
          s.channels % s.groups == 0 && (s.sets == s.batch || s.sets == 1),
      "batch, channels and groups do not fit");
  for (const Tensor* tensor : {&y, &weight})
    STD_TORCH_CHECK(tensor->scalar_type() == x.scalar_type(), "all tensors must have one dtype");
  return s;
}

// Calls run with a null pointer to the tensors' numbers.
template <class Run>
void by_type(const Tensor& tensor, const Run& run) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return run(static_cast<float*>(nullptr));
    case ScalarType::Double: return run(static_cast<double*>(nullptr));
    case ScalarType::BFloat16: return run(static_cast<Bfloat*>(nullptr));
    default: STD_TORCH_CHECK(false, "x must be float32, float64 or bfloat16");
  }
}

void position_varying(
    Tensor y, Tensor x, Tensor weight, Ints stride, Ints padding, Ints dilation, bool softmax) {
  const Shape s = shape_of(x, y, weight, stride, padding, dilation, softmax);
  if (!y.numel()) return;
  const int64_t dim = x.dim() - 2;
  by_type(x, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
    forward<S>(s, image<S>(y, dim), image<S>(x, dim), kernels<S>(weight, dim));
  });
}

void position_varying_input(
    Tensor gradient, Tensor grad, Tensor weight, Ints stride, Ints padding, Ints dilation,
    bool softmax) {
  const Shape s = shape_of(gradient, grad, weight, stride, padding, dilation, softmax);
  if (!gradient.numel()) return;
  const int64_t dim = grad.dim() - 2;
  by_type(grad, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
    by_input<S>(s, image<S>(gradient, dim), image<S>(grad, dim), kernels<S>(weight, dim));
  });
}

void position_varying_weight(
    Tensor gradient, Tensor grad, Tensor x, Tensor weight, Ints stride, Ints padding, Ints dilation,
    bool softmax) {
  const Shape s = shape_of(x, grad, weight, stride, padding, dilation, softmax);
  bool same = gradient.dim() == weight.dim() && gradient.scalar_type() == x.scalar_type();
  for (int64_t a = 0; same && a < weight.dim(); a++) same = gradient.size(a) == weight.size(a);
  STD_TORCH_CHECK(same, "the gradient must be shaped as weight");
  if (!gradient.numel()) return;
  const int64_t dim = x.dim() - 2;
  by_type(x, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
    by_weights<S>(
        s, kernels<S>(gradient, dim), image<S>(grad, dim), image<S>(x, dim),
        kernels<S>(weight, dim));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(omniconv_cpu, m) {
  m.def(
      "position_varying(Tensor(a!) y, Tensor x, Tensor weight, int[] stride, int[] padding, "
      "int[] dilation, bool softmax) -> ()");
  m.def(
      "position_varying_input(Tensor(a!) gradient, Tensor grad, Tensor weight, int[] stride, "
      "int[] padding, int[] dilation, bool softmax) -> ()");
  m.def(
      "position_varying_weight(Tensor(a!) gradient, Tensor grad, Tensor x, Tensor weight, "
      "int[] stride, int[] padding, int[] dilation, bool softmax) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(omniconv_cpu, CPU, m) {
  m.impl("position_varying", TORCH_BOX(&position_varying));
  m.impl("position_varying_input", TORCH_BOX(&position_varying_input));
  m.impl("position_varying_weight", TORCH_BOX(&position_varying_weight));
}
