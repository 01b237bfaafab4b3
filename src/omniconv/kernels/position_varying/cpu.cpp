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

#include "box.h"
#include "loops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t BUDGET = 192 * 1024;  // bytes of packed weights, about
constexpr int64_t CHANNELS = 16;        // worked on at a time
constexpr int64_t TASKS = 8;            // fewer are split, for the threads

// Tap q of position p reads the input at (p + shift(q)) stride + phase(q) - low.
struct Axis {
  int64_t in, taps, out, stride, dilation, low;

  int64_t shift(int64_t q) const { return q * dilation / stride; }
  int64_t phase(int64_t q) const { return q * dilation % stride; }
  int64_t reach() const { return shift(taps - 1); }
  // the cells of `stride` inputs, counted as positions are, that the image takes part in
  int64_t first_cell() const { return low / stride; }
  int64_t cells() const { return (in - 1 + low) / stride - first_cell() + 1; }
};

// Tensors (batch, channels, *space) and (batch or 1, groups, *taps, *space); absent axes come first.
template <class S>
struct Image {
  S* data;
  int64_t batch, channel, space[3];
};

template <class S>
struct Weights {
  S* data;
  int64_t batch, group, tap[3], space[3];
};

struct Shape {
  Axis axis[3];
  int64_t batch, channels, groups, sets;  // sets: the weights' batch
  bool softmax;

  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  int64_t shared() const { return channels / groups * (sets == 1 ? batch : 1); }
};

struct Tap {
  int64_t at[3];
};

inline std::vector<Tap> all_taps(const Shape& s) {
  std::vector<Tap> taps;
  for (int64_t i = 0; i < s.axis[0].taps; i++)
    for (int64_t j = 0; j < s.axis[1].taps; j++)
      for (int64_t k = 0; k < s.axis[2].taps; k++) taps.push_back({{i, j, k}});
  return taps;
}

// Boxes of at most `size` that cover `whole`; each is read with `reach` more along every axis.
struct Tiling {
  int64_t whole[3], size[3], reach[3], count[3];

  int64_t tiles() const { return count[0] * count[1] * count[2]; }
  int64_t extended(int a) const { return size[a] + reach[a]; }

  void split(int a, int64_t most) {
    count[a] = (whole[a] + most - 1) / most;
    size[a] = (whole[a] + count[a] - 1) / count[a];
    count[a] = (whole[a] + size[a] - 1) / size[a];
  }

  Tiling(const int64_t (&whole_)[3], const int64_t (&reach_)[3], int64_t budget, int64_t tasks) {
    std::copy(whole_, whole_ + 3, whole);
    std::copy(reach_, reach_ + 3, reach);
    const auto within = [](int64_t value, int64_t most) {
      return std::min(std::max<int64_t>(value, 1), most);
    };
    split(2, within(std::max<int64_t>(budget, 64), whole[2]));
    split(1, within(budget / extended(2), whole[1]));
    split(0, within(size[1] < whole[1] ? 1 : budget / (size[1] * extended(2)), whole[0]));
    while (tiles() * tasks < TASKS && (size[0] > 1 || size[1] > 4))
      size[0] > 1 ? split(0, (size[0] + 1) / 2) : split(1, (size[1] + 1) / 2);
  }

  void place(int64_t tile, int64_t* start, int64_t* extent) const {
    for (int a = 2; a >= 0; tile /= count[a--]) {
      start[a] = tile % count[a] * size[a];
      extent[a] = std::min(size[a], whole[a] - start[a]);
    }
  }
};

// The lanes of a box: plane by plane, one run of all its rows with the gaps between them that the
// values have, or a run for each row, whichever takes fewer vectors.
struct Lay {
  int64_t line, runs, vectors, plane, values_line, values_plane;

  Lay(const Tiling& tiling, int64_t lanes) {
    values_line = tiling.extended(2);
    values_plane = values_line * tiling.extended(1);
    const auto vectors_of = [&](int64_t count) { return (count + lanes - 1) / lanes; };
    const int64_t whole = vectors_of((tiling.size[1] - 1) * values_line + tiling.size[2]);
    const int64_t each = vectors_of(tiling.size[2]);
    const bool flat = whole <= tiling.size[1] * each;
    line = flat ? values_line : each * lanes;
    runs = flat ? 1 : tiling.size[1];
    vectors = flat ? whole : each;
    plane = flat ? whole * lanes : runs * line;
  }
};

// Memory of one thread.
template <class T>
struct Memory {
  T *values, *weight, *spare, *result;
};

template <class S>
struct Work {
  using T = Exact<S>;
  static constexpr int64_t L = Lanes<T>::count;

  const Shape& s;
  Weights<S> weights;
  Tiling tiling;
  Lay lay;
  std::vector<Tap> taps;
  int64_t phases[3];  // remainders modulo the stride that values are packed for
  int64_t values_size, lanes, packed;
  int64_t spare = 0;  // numbers of memory more, for a pass

  Work(const Shape& shape, const Weights<S>& weights_, const Tiling& tiling_, bool by_phase)
      : s(shape), weights(weights_), tiling(tiling_), lay(tiling_, L), taps(all_taps(shape)) {
    for (int a = 0; a < 3; a++)
      phases[a] = by_phase && s.axis[a].taps > 1 ? s.axis[a].stride : 1;
    values_size = tiling.extended(0) * lay.values_plane;
    lanes = tiling.size[0] * lay.plane;
    packed = std::min(CHANNELS, s.shared());
  }

  int64_t tasks() const { return s.sets * s.groups * tiling.tiles(); }
  int64_t channel_values() const { return phases[0] * phases[1] * phases[2] * values_size; }

  // Addresses of the channels from `first` on that share weights.
  template <class P>
  int64_t channels(
      int64_t set, int64_t group, int64_t first, const Image<P>& image, P** found) const {
    const int64_t each = s.channels / s.groups, count = std::min(packed, s.shared() - first);
    for (int64_t m = 0; m < count; m++) {
      const int64_t b = s.sets == 1 ? (first + m) / each : set;
      found[m] = image.data + b * image.batch + (group * each + (first + m) % each) * image.channel;
    }
    return count;
  }

  // Addresses of the weights of all taps.
  std::vector<S*> addresses(int64_t set, int64_t group) const {
    std::vector<S*> found;
    for (const Tap& tap : taps) {
      found.push_back(weights.data + set * weights.batch + group * weights.group);
      for (int a = 0; a < 3; a++) found.back() += tap.at[a] * weights.tap[a];
    }
    return found;
  }

  // A box of positions, or of values, as it lies in a tensor.
  Box box(const int64_t* start, const int64_t* extent, const int64_t* stride) const {
    Box b;
    for (int a = 0; a < 3; a++) {
      b.start[a] = start[a];
      b.extent[a] = extent[a];
      b.step[a] = 1;
      b.stride[a] = stride[a];
      b.limit[a] = s.axis[a].out;
    }
    b.plane = lay.plane;
    b.line = lay.line;
    return b;
  }

  void pack_weights(
      int64_t set, int64_t group, const int64_t* start, const int64_t* extent, T* to) const {
    const std::vector<S*> from = addresses(set, group);
    Box b = box(start, extent, weights.space);
    b.settle();
    pack<S>(from.data(), int64_t(from.size()), int64_t(from.size()), b, to, lanes);
    if (s.softmax) normalise<T>(to, lanes, int64_t(taps.size()), lanes);
  }

  // The values that the taps of a box read, by phase.
  template <class P>
  void pack_input(
      P* const* from, int64_t count, const int64_t* start, const int64_t* extent,
      const Image<P>& x, T* to) const {
    Box b = box(start, extent, x.space);
    b.plane = lay.values_plane;
    b.line = lay.values_line;
    for (int a = 0; a < 3; a++) {
      b.extent[a] += tiling.reach[a];
      b.step[a] = s.axis[a].stride;
      b.limit[a] = s.axis[a].in;
    }
    for (int64_t i = 0; i < phases[0]; i++)
      for (int64_t j = 0; j < phases[1]; j++)
        for (int64_t k = 0; k < phases[2]; k++, to += values_size) {
          const int64_t phase[3] = {i, j, k};
          for (int a = 0; a < 3; a++)
            b.start[a] = start[a] * s.axis[a].stride + phase[a] - s.axis[a].low;
          b.settle();
          pack<S>(from, count, count, b, to, channel_values());
        }
  }

  std::vector<int64_t> offsets() const {
    std::vector<int64_t> found;
    for (const Tap& tap : taps) {
      int64_t phase = 0;
      for (int a = 0; a < 3; a++)
        phase = phase * phases[a] + (phases[a] > 1 ? s.axis[a].phase(tap.at[a]) : 0);
      found.push_back(
          phase * values_size + s.axis[0].shift(tap.at[0]) * lay.values_plane +
          s.axis[1].shift(tap.at[1]) * lay.values_line + s.axis[2].shift(tap.at[2]));
    }
    return found;
  }

  // Where packed weights lie.
  std::vector<int64_t> places() const {
    std::vector<int64_t> found;
    for (size_t q = 0; q < taps.size(); q++) found.push_back(int64_t(q) * lanes);
    return found;
  }

  Job<T> job(
      const Memory<T>& memory, T* weight, const std::vector<int64_t>& offset,
      const std::vector<int64_t>& place) const {
    Job<T> job;
    job.values = memory.values;
    job.weight = weight;
    job.result = memory.result;
    job.channel = channel_values();
    job.lane = lanes;
    job.offset = offset.data();
    job.place = place.data();
    job.taps = int64_t(offset.size());
    job.runs = lay.runs;
    job.vectors = lay.vectors;
    job.values_run = lay.values_line;
    job.weight_run = job.run = lay.line;
    return job;
  }

  template <class Loop>
  void by_plane(Job<T> job, int64_t planes, int64_t weight_plane, Loop loop) const {
    for (int64_t i = 0; i < planes; i++) {
      loop(job);
      job.values += lay.values_plane;
      job.weight += weight_plane;
      job.result += lay.plane;
    }
  }

  // A function of (memory, set, group, start, extent) for every box, on all threads.
  template <class Task>
  void run(const Task& task) const {
    const int64_t values = packed * channel_values() + 4 * L, weight = s.taps() * lanes;
    const int64_t result = packed * lanes, each = tiling.tiles();
    const int64_t whole = values + weight + spare + result + 4 * L;
    const int64_t cost = weight * (s.shared() + 4) / 16;
    torch::stable::parallel_for(0, tasks(), 20000 / (cost + 1) + 1, [&](int64_t first, int64_t last) {
      constexpr std::align_val_t line{64};
      T* all = static_cast<T*>(::operator new(whole * sizeof(T), line));
      auto take = [&, free = all](int64_t count) mutable {
        T* found = free;
        free += (count + L - 1) / L * L;
        return found;
      };
      Memory<T> memory;
      memory.values = take(values);
      memory.weight = take(weight);
      memory.spare = take(spare);
      memory.result = take(result);
      for (int64_t i = first; i < last; i++) {
        int64_t start[3], extent[3];
        tiling.place(i % each, start, extent);
        task(memory, i / each / s.groups, i / each % s.groups, start, extent);
      }
      ::operator delete(all, line);
    });
  }
};

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
    axis = {x.size(2 + a), weight.size(2 + a), y.size(2 + a), stride[a], dilation[a], padding[2 * a]};
    STD_TORCH_CHECK(
        axis.stride >= 1 && axis.dilation >= 1 && axis.low >= 0 && padding[2 * a + 1] >= 0 &&
            axis.taps >= 1,
        "stride and dilation must be at least 1, padding at least 0");
    const int64_t room = axis.in + axis.low + padding[2 * a + 1] - axis.dilation * (axis.taps - 1);
    STD_TORCH_CHECK(
        room >= 1 && axis.out == (room - 1) / axis.stride + 1 && axis.out == weight.size(2 + dim + a),
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
        s, kernels<S>(gradient, dim), image<S>(grad, dim), image<S>(x, dim), kernels<S>(weight, dim));
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
