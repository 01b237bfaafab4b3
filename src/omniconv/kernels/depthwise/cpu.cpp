// Depthwise convolution and its gradients (reference.py has the equations).
//
// Lanes of a vector are channels (of one image, or of several where there are few), so that every
// operation is elementwise whatever the sizes of image and kernel. Blocks of planes become vectors
// in memory of the second cache's size, padded along one axis only: rows outside of the image are
// left out. One inner loop serves the three passes (correlate.h). Every job writes its own outputs, and
// sums over the batch have an order that the shapes fix, so that results do not depend on threads.

#include "engine.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

template <class T>
using Vectors = std::unique_ptr<Value<T>[], Free>;

template <class T>
Vectors<T> vectors(int64_t count) {
  const size_t bytes = size_t(std::max<int64_t>(count, 1)) * sizeof(Value<T>);
  return Vectors<T>(static_cast<Value<T>*>(::operator new(bytes, std::align_val_t{64})));
}

// A tensor (B, C, *size), contiguous or channels-last; axes that are missing lead.
template <class S>
struct Images {
  S* data;
  int64_t batch, channels, size[3];
  bool last;

  explicit Images(const Tensor& t)
      : data(static_cast<S*>(const_cast<void*>(t.const_data_ptr()))),
        batch(t.size(0)),
        channels(t.size(1)),
        size{1, 1, 1},
        last(!t.is_contiguous()) {
    STD_TORCH_CHECK(!last || t.stride(1) == 1, "tensors must be contiguous or channels-last");
    for (int64_t i = 2; i < t.dim(); i++) size[i + 3 - t.dim()] = t.size(i);
  }

  int64_t places() const { return size[0] * size[1] * size[2]; }
  S* plane(int64_t image, int64_t channel) const {
    return data + image * channels * places() + channel * (last ? 1 : places());
  }
};

// Planes in blocks of as many as a vector has lanes. Blocks of one kind have the same channels.
// Images are worked on one after the other, or, where there are few channels, all planes in a row.
struct Blocks {
  int64_t batch, channels, lanes, kinds, repeats;
  bool row;

  Blocks(int64_t batch, int64_t channels, int64_t lanes, bool may_row)
      : batch(batch), channels(channels), lanes(lanes) {
    row = may_row && channels % lanes && channels < 4 * lanes;
    kinds = row ? channels / std::gcd(channels, lanes) : (channels + lanes - 1) / lanes;
    repeats = row ? (batch * channels + lanes * kinds - 1) / (lanes * kinds) : batch;
  }

  // which channel a lane holds, -1 for none
  int64_t channel(int64_t kind, int64_t lane) const {
    const int64_t c = kind * lanes + lane;
    return row ? c % channels : c < channels ? c : -1;
  }

  // its plane among all of (B, C), -1 for none
  int64_t plane(int64_t repeat, int64_t kind, int64_t lane) const {
    const int64_t c = kind * lanes + lane;
    if (!row) return c < channels ? repeat * channels + c : -1;
    const int64_t found = repeat * kinds * lanes + c;
    return found < batch * channels ? found : -1;
  }

  // of a tensor in which `shared` of the channels have one plane together
  template <class S>
  Planes<S> planes(const Images<S>& t, int64_t shared, int64_t repeat, int64_t kind) const {
    Planes<S> p{};
    const int64_t step = t.last ? t.channels : 1;
    p.step[0] = t.size[1] * t.size[2] * step;
    p.step[1] = t.size[2] * step;
    p.step[2] = step;
    for (; p.count < lanes; p.count++) {
      const int64_t at = plane(repeat, kind, p.count);
      if (at < 0) break;
      p.lane[p.count] = t.plane(at / channels, at % channels / shared);
    }
    p.neighbours = p.count == lanes;
    for (int64_t l = 1; l < p.count; l++) p.neighbours &= p.lane[l] == p.lane[l - 1] + 1;
    return p;
  }
};

// Every kernel tap as a vector over the channels of a kind.
template <class S>
Vectors<Exact<S>> spread(const Images<const S>& t, const Blocks& blocks, const Box& box) {
  const int64_t taps = t.places();
  Vectors<Exact<S>> found = vectors<Exact<S>>(blocks.kinds * taps);
  const Images<const S>& kernels = t;
  for (int64_t kind = 0; kind < blocks.kinds; kind++) {
    Planes<const S> p{};
    p.step[0] = t.size[1] * t.size[2];
    p.step[1] = t.size[2];
    p.step[2] = 1;
    for (; p.count < blocks.lanes; p.count++) {
      const int64_t channel = blocks.channel(kind, p.count);
      if (channel < 0) break;
      p.lane[p.count] = kernels.data + channel * taps;
    }
    fill(p, t.size, box, found.get() + kind * taps);
  }
  return found;
}

// vectors of work that are worth another thread
constexpr int64_t GRAIN = 20000;
constexpr int64_t LONG_ROW = 24;

template <class S>
void convolve(
    const Geometry& g, Pass pass, const Tensor& out_, const Tensor& h_, const Tensor& x_,
    const std::optional<Tensor>& bias_) {
  using T = Exact<S>;
  const Images<S> out(out_);
  const Images<const S> h(h_), x(x_);
  const Blocks blocks(out.batch, out.channels, Lanes<T>::count, !out.last && !x.last);
  const int64_t shared = out.channels / x.channels, taps = h.places();
  const std::vector<Band<T>> all = bands<T>(g, pass);
  const Vectors<T> kernels = spread(h, blocks, all[0].h);
  const Vectors<T> starts = vectors<T>(blocks.kinds);
  const S* bias = bias_ ? static_cast<const S*>(bias_->const_data_ptr()) : nullptr;
  for (int64_t i = 0; i < blocks.kinds * blocks.lanes; i++) {
    const int64_t channel = blocks.channel(i / blocks.lanes, i % blocks.lanes);
    reinterpret_cast<T*>(starts.get())[i] = bias && channel >= 0 ? get(bias + channel) : T(0);
  }
  int64_t most = 0, results = 0;
  for (const Band<T>& band : all) {
    most = std::max(most, band.x.size());
    results = std::max(results, band.out.size());
  }
  const int64_t pieces = int64_t(all.size());
  const int64_t jobs = blocks.kinds * blocks.repeats * pieces;
  const int64_t grain = GRAIN / all[0].work() + 1;
  torch::stable::parallel_for(0, jobs, grain, [&](int64_t job, int64_t last) {
    const Vectors<T> in = vectors<T>(most), found = vectors<T>(results);
    for (; job < last; job++) {
      const auto source = [&](int64_t number) {
        return blocks.planes(x, shared, number / pieces / blocks.kinds, number / pieces % blocks.kinds);
      };
      const Band<T>& band = all[job % pieces];
      const int64_t kind = job / pieces % blocks.kinds, repeat = job / pieces / blocks.kinds;
      fill(source(job), x.size, band.x, in.get());
      const Planes<const S> next = job + 1 < last ? source(job + 1) : Planes<const S>{};
      const Planes<S> target = blocks.planes(out, 1, repeat, kind);
      const Box& then = all[(job + 1) % pieces].x;
      // vectors that lie in the tensor as they are computed need not be copied, and rows that are
      // long enough are copied one by one, while they are in the first cache
      const bool here = std::is_same_v<S, T> && target.neighbours &&
                        target.step[2] % blocks.lanes == 0 &&
                        reinterpret_cast<uintptr_t>(target.lane[0]) % sizeof(Value<T>) == 0;
      const bool by_row = !here && g.inner == 2 && band.out.range[2].size() >= LONG_ROW;
      Value<T>* to = here ? reinterpret_cast<Value<T>*>(target.lane[0]) : found.get();
      int64_t step[3];
      for (int i = 0; i < 3; i++) {
        step[i] = here ? target.step[i] / blocks.lanes : band.out.step(i);
        if (here) to += band.out.range[i].first * step[i];
        if (by_row && i < 2) step[i] = 0;
      }
      const int64_t rows = band.out.range[1].size();
      correlate_band<T>(
          g, band, kernels.get() + kind * taps, in.get(), starts.get() + kind, to, step,
          [&](int64_t part, int64_t parts) {
            fetch<false>(next, x.size, then, part, parts);
            if (!here) fetch<true>(target, out.size, band.out, std::min(part + 1, parts - 1), parts);
            if (!by_row) return;
            const int64_t z = band.out.range[0].first + part / rows;
            const int64_t y = band.out.range[1].first + part % rows;
            empty(target, out.size, Box{{{z, z + 1}, {y, y + 1}, band.out.range[2]}}, found.get());
          });
      if (!here && !by_row) empty(target, out.size, band.out, found.get());
    }
  });
}

template <class S>
void gradient_of_kernels(
    const Geometry& g, const Tensor& out_, const Tensor& h_, const Tensor& x_) {
  using T = Exact<S>;
  const Images<S> out(out_);
  const Images<const S> h(h_), x(x_);
  const Blocks blocks(h.batch, h.channels, Lanes<T>::count, !h.last && !x.last);
  const int64_t shared = h.channels / x.channels, taps = out.places();
  const std::vector<Band<T>> all = bands<T>(g, by_weight);
  int64_t most_h = 0, most_x = 0;
  for (const Band<T>& band : all) {
    most_h = std::max(most_h, band.h.size());
    most_x = std::max(most_x, band.x.size());
  }
  const int64_t pieces = int64_t(all.size());
  // parts of the batch, as many as the shapes say
  const int64_t parts = std::clamp<int64_t>(32 / blocks.kinds, 1, std::max<int64_t>(blocks.repeats, 1));
  const int64_t jobs = blocks.kinds * parts;
  const Vectors<T> sums = vectors<T>(jobs * taps);
  const int64_t step[3] = {out.size[1] * out.size[2], out.size[2], 1};
  std::fill(sums.get(), sums.get() + jobs * taps, Value<T>{});
  torch::stable::parallel_for(0, jobs, 1, [&](int64_t job, int64_t last) {
    const Vectors<T> grad = vectors<T>(most_h), in = vectors<T>(most_x);
    for (; job < last; job++) {
      const int64_t kind = job / parts, part = job % parts;
      const int64_t steps = (blocks.repeats - part + parts - 1) / parts * pieces;
      for (int64_t i = 0; i < steps; i++) {
        const int64_t repeat = part + i / pieces * parts, later = part + (i + 1) / pieces * parts;
        const Band<T>&band = all[i % pieces], &then = all[(i + 1) % pieces];
        fill(blocks.planes(h, 1, repeat, kind), h.size, band.h, grad.get());
        fill(blocks.planes(x, shared, repeat, kind), x.size, band.x, in.get());
        Planes<const S> next_h{}, next_x{};
        if (i + 1 < steps) {
          next_h = blocks.planes(h, 1, later, kind);
          next_x = blocks.planes(x, shared, later, kind);
        }
        correlate_band<T>(
            g, band, grad.get(), in.get(), nullptr, sums.get() + job * taps, step,
            [&](int64_t row, int64_t rows) {
              fetch<false>(next_h, h.size, then.h, row, rows);
              fetch<false>(next_x, x.size, then.x, row, rows);
            });
      }
    }
  });
  std::vector<T> total(taps);
  for (int64_t channel = 0; channel < h.channels; channel++) {
    std::fill(total.begin(), total.end(), T(0));
    for (int64_t at = channel; at < blocks.kinds * blocks.lanes; at += h.channels)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t job = at / blocks.lanes * parts + part;
        const T* from = reinterpret_cast<const T*>(sums.get() + job * taps) + at % blocks.lanes;
        for (int64_t k = 0; k < taps; k++) total[k] += from[k * blocks.lanes];
      }
    for (int64_t k = 0; k < taps; k++) put(out.data + channel * taps + k, total[k]);
  }
}

template <class S>
void run(
    const Geometry& g, Pass pass, const Tensor& out, const Tensor& h, const Tensor& x,
    const std::optional<Tensor>& bias) {
  if (pass == by_weight)
    gradient_of_kernels<S>(g, out, h, x);
  else if (out.numel() > 0)
    convolve<S>(g, pass, out, h, x, bias);
}

void depthwise(
    int64_t number, Tensor out, Tensor h, Tensor x, std::optional<Tensor> bias,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  STD_TORCH_CHECK(number >= forward && number <= by_weight, "unknown pass");
  const Pass pass = Pass(number);
  const Tensor& y = pass == forward ? out : pass == by_input ? x : h;
  const Tensor& image = pass == by_input ? out : x;
  const Tensor& kernel = pass == by_weight ? out : h;
  const int64_t dim = x.dim() - 2;
  const auto type = x.scalar_type();
  STD_TORCH_CHECK(dim >= 1 && dim <= 3, "x must have one to three axes");
  STD_TORCH_CHECK(
      out.dim() == dim + 2 && h.dim() == dim + 2 && int64_t(stride.size()) == dim &&
          int64_t(dilation.size()) == dim && int64_t(padding.size()) == 2 * dim,
      "arguments have several numbers of axes");
  STD_TORCH_CHECK(
      out.scalar_type() == type && h.scalar_type() == type &&
          (!bias || (bias->scalar_type() == type && bias->is_contiguous())),
      "arguments have several dtypes");
  STD_TORCH_CHECK(
      kernel.is_contiguous() && kernel.size(1) == 1 && kernel.size(0) == y.size(1) &&
          (!bias || bias->numel() == y.size(1)) && image.size(0) == y.size(0) &&
          image.size(1) > 0 && y.size(1) % image.size(1) == 0 &&
          (pass != by_input || y.size(1) == image.size(1)),
      "the channels do not fit");
  Geometry g;
  g.inner = 2;
  int64_t sizes[3] = {1, 1, 1};
  for (int64_t i = 0; i < 3; i++) {
    const int64_t j = i - 3 + dim, a = j + 2;
    if (j < 0) {
      g.axis[i] = Axis(1, 1, 1, 1, 1, 0, 1);
      continue;
    }
    const int64_t n = image.size(a), k = kernel.size(a), places = y.size(a);
    const int64_t s = stride[j], d = dilation[j], low = padding[2 * j], high = padding[2 * j + 1];
    STD_TORCH_CHECK(
        s > 0 && d > 0 && k > 0 && places > 0 &&
            places == (n + low + high - d * (k - 1) - 1) / s + 1,
        "the sizes do not fit");
    sizes[i] = k;
    g.axis[i] = pass == forward    ? Axis(places, k, n, s, d, -low, 1)
                : pass == by_input ? Axis(n, k, places, 1, -d, low, s)
                                   : Axis(k, places, n, d, s, -low, 1);
  }
  for (int i = 1; i >= 0; i--)
    if (sizes[i] >= 2 * sizes[g.inner]) g.inner = i;
  if (type == ScalarType::Float)
    run<float>(g, pass, out, h, x, bias);
  else if (type == ScalarType::Double)
    run<double>(g, pass, out, h, x, bias);
  else if (type == ScalarType::BFloat16)
    run<Bfloat>(g, pass, out, h, x, bias);
  else
    STD_TORCH_CHECK(false, "x must be float32, float64 or bfloat16");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(omniconv_cpu, m) {
  m.def(
      "depthwise(int number, Tensor(a!) out, Tensor h, Tensor x, Tensor? bias, int[] stride, "
      "int[] padding, int[] dilation) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(omniconv_cpu, CPU, m) { m.impl("depthwise", TORCH_BOX(&depthwise)); }
