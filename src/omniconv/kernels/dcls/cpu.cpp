// Dense kernels of taps at real positions, and their gradients (reference.py has the equations).
//
// As many pairs of channels as fit a 64-byte vector are worked on side by side, one per lane: every
// operation is elementwise whatever the kernel's size and the number of taps, lanes never mix, and
// results do not depend on the number of threads. Profiles are built for one tap at a time, so
// memory is linear in taps and entries. A multilinear tap of a large kernel touches its 2^d
// entries only (scatter, gather); all others go through their window of the kernel (build,
// differentiate), which is a constant where every axis has three entries (build_three,
// differentiate_three).

#include "axis.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using torch::stable::Tensor;

#define UNROLL _Pragma("GCC unroll 3")

constexpr int64_t SMALL = 64;  // entries up to which multilinear taps go through their window

// target[j][i] = source[i][j] of matrices whose rows lie so far apart
template <class T>
__attribute__((noinline)) void transpose(
    const T* source, int64_t source_row, T* target, int64_t target_row, int64_t rows,
    int64_t columns) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++)
      target[j * target_row + i] = source[i * source_row + j];
}

#if __has_builtin(__builtin_shufflevector)
__attribute__((noinline)) void transpose(
    const float* source, int64_t source_row, float* target, int64_t target_row, int64_t rows,
    int64_t columns) {
  typedef float Four __attribute__((vector_size(16)));
  const int64_t high = rows & ~3, wide = columns & ~3;
  for (int64_t i = 0; i < high; i += 4)
    for (int64_t j = 0; j < wide; j += 4) {
      Four a, b, c, d;
      const float* from = source + i * source_row + j;
      std::memcpy(&a, from, sizeof a);
      std::memcpy(&b, from + source_row, sizeof b);
      std::memcpy(&c, from + 2 * source_row, sizeof c);
      std::memcpy(&d, from + 3 * source_row, sizeof d);
      const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Four AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
      b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
      c = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
      d = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
      float* to = target + j * target_row + i;
      std::memcpy(to, &a, sizeof a);
      std::memcpy(to + target_row, &b, sizeof b);
      std::memcpy(to + 2 * target_row, &c, sizeof c);
      std::memcpy(to + 3 * target_row, &d, sizeof d);
    }
  transpose<float>(source + wide, source_row, target + wide * target_row, target_row, high,
                   columns - wide);
  transpose<float>(source + high * source_row, source_row, target + high, target_row, rows - high,
                   columns);
}
#endif

// rows[j][lane] = source[lane][j], the missing lanes 0; and back
template <class T>
INLINE void load(Value<T>* rows, const T* source, int64_t length, int64_t lanes) {
  if (lanes < Lanes<T>::count) std::fill(rows, rows + length, Value<T>{});
  transpose(source, length, reinterpret_cast<T*>(rows), Lanes<T>::count, lanes, length);
}

template <class T>
INLINE void store(const Value<T>* rows, T* target, int64_t length, int64_t lanes) {
  transpose(
      reinterpret_cast<const T*>(rows), Lanes<T>::count, target, length, length, lanes);
}

// The tensors' memory; those that an operation does not have are null.
template <class T>
struct Data {
  const T *taps, *position, *width, *kernel_gradient;
  T *kernel, *taps_gradient, *position_gradient, *width_gradient;
};

// Memory of one thread: parameters of a block of pairs, then profiles, their gradients, a kernel.
template <class T>
struct Block {
  Value<T> *taps, *position, *width, *row, *gradient, *kernel;

  INLINE Block(Value<T>* memory, const Shape& s, bool width_too) {
    taps = memory;
    position = taps + s.taps;
    width = position + s.dim * s.taps;
    row = width + (width_too ? s.dim * s.taps : 0);
    gradient = row + s.profiles();
    kernel = gradient + s.profiles();
  }

  INLINE void fill(const Data<T>& data, const Shape& s, int64_t pair, int64_t lanes) {
    const int64_t coordinates = s.dim * s.taps;
    load(taps, data.taps + pair * s.taps, s.taps, lanes);
    load(position, data.position + pair * coordinates, coordinates, lanes);
    if (data.width) load(width, data.width + pair * coordinates, coordinates, lanes);
  }

  INLINE void drain(const Data<T>& data, const Shape& s, int64_t pair, int64_t lanes) const {
    const int64_t coordinates = s.dim * s.taps;
    store(taps, data.taps_gradient + pair * s.taps, s.taps, lanes);
    store(position, data.position_gradient + pair * coordinates, coordinates, lanes);
    if (data.width) store(width, data.width_gradient + pair * coordinates, coordinates, lanes);
  }
};

template <class T, int F>
INLINE void profiles(Axis<T>* axes, const Block<T>& block, const Shape& s, int64_t tap) {
  for (int64_t a = 3 - s.dim; a < 3; a++) {
    const int64_t j = s.row(a, tap);
    axes[a].template profile<F>(block.position[j], F == bilinear ? nullptr : block.width + j);
  }
}

template <class T>
INLINE void new_axes(Axis<T>* axes, const Block<T>& block, const Shape& s) {
  Value<T>* row = block.row;
  for (int64_t a = 0; a < 3; a++) {
    axes[a] = new_axis<T>(s.size[a], row);
    if (!s.real(a)) {
      axes[a].first = 0;
      axes[a].last = 1;
      axes[a].row[0] = T(1) + Value<T>{};
    }
  }
}

template <class T, int F>
CLONES void build(
    const Data<T>& data, const Shape& s, int64_t first, int64_t last, Value<T>* memory) {
  Block<T> block(memory, s, F != bilinear);
  Axis<T> axes[3];
  new_axes(axes, block, s);
  const int64_t entries = s.entries();
  for (int64_t pair = first * Lanes<T>::count; first < last; first++, pair += Lanes<T>::count) {
    const int64_t lanes = std::min(Lanes<T>::count, s.pairs - pair);
    block.fill(data, s, pair, lanes);
    std::fill(block.kernel, block.kernel + entries, Value<T>{});
    for (int64_t k = 0; k < s.taps; k++) {
      profiles<T, F>(axes, block, s, k);
      Value<T> weight = block.taps[k];
      if (F != bilinear)
        for (int64_t a = 3 - s.dim; a < 3; a++) weight /= axes[a].sum;
      for (int64_t i = axes[0].first; i < axes[0].last; i++) {
        const Value<T> plane = weight * axes[0].row[i];
        for (int64_t j = axes[1].first; j < axes[1].last; j++) {
          const Value<T> line = plane * axes[1].row[j];
          Value<T>* kernel = block.kernel + (i * s.size[1] + j) * s.size[2];
          for (int64_t u = axes[2].first; u < axes[2].last; u++)
            kernel[u] += line * axes[2].row[u];
        }
      }
    }
    store(block.kernel, data.kernel + pair * entries, entries, lanes);
  }
}

template <class T, int F>
CLONES void differentiate(
    const Data<T>& data, const Shape& s, int64_t first, int64_t last, Value<T>* memory) {
  Block<T> block(memory, s, F != bilinear);
  Axis<T> axes[3];
  new_axes(axes, block, s);
  Value<T>* gradient[3] = {
      block.gradient, block.gradient + s.size[0], block.gradient + s.size[0] + s.size[1]};
  const int64_t entries = s.entries();
  for (int64_t pair = first * Lanes<T>::count; first < last; first++, pair += Lanes<T>::count) {
    const int64_t lanes = std::min(Lanes<T>::count, s.pairs - pair);
    block.fill(data, s, pair, lanes);
    load(block.kernel, data.kernel_gradient + pair * entries, entries, lanes);
    for (int64_t k = 0; k < s.taps; k++) {
      profiles<T, F>(axes, block, s, k);
      if (F != bilinear)
        for (int64_t a = 3 - s.dim; a < 3; a++) {
          const Value<T> inverse = T(1) / axes[a].sum;
          for (int64_t u = axes[a].first; u < axes[a].last; u++) axes[a].row[u] *= inverse;
        }
      for (int64_t a = 1; a < 3; a++)
        std::fill(gradient[a] + axes[a].first, gradient[a] + axes[a].last, Value<T>{});
      Value<T> mean{};
      for (int64_t i = axes[0].first; i < axes[0].last; i++) {
        const Value<T> above = axes[0].row[i];
        Value<T> plane{};
        for (int64_t j = axes[1].first; j < axes[1].last; j++) {
          const Value<T> left = above * axes[1].row[j];
          const Value<T>* kernel = block.kernel + (i * s.size[1] + j) * s.size[2];
          Value<T> line{};
          for (int64_t u = axes[2].first; u < axes[2].last; u++) {
            line += kernel[u] * axes[2].row[u];
            gradient[2][u] += kernel[u] * left;
          }
          gradient[1][j] += line * above;
          plane += line * axes[1].row[j];
        }
        gradient[0][i] = plane;
        mean += plane * above;
      }
      for (int64_t a = 3 - s.dim; a < 3; a++) {
        const int64_t j = s.row(a, k);
        axes[a].template pull_back<F>(
            gradient[a], mean, block.taps[k], block.position[j],
            F == bilinear ? nullptr : block.width + j);
      }
      block.taps[k] = mean;
    }
    block.drain(data, s, pair, lanes);
  }
}

// A tap's profile, of sum 1, along an axis of N entries, 3 or, for a missing axis, 1.
template <class T, int F, int N>
struct Profile {
  Value<T> row[N];
  Axis<T> axis;

  INLINE void set(const Block<T>& block, const Shape& s, int64_t number, int64_t tap) {
    if constexpr (N == 1) {
      row[0] = T(1) + Value<T>{};
    } else {
      const int64_t at = s.row(number, tap);
      axis.size = N;
      axis.centre = T(N - 1) / T(2);
      axis.row = row;
      if constexpr (F != bilinear) {
        axis.template profile<F>(block.position[at], block.width + at);
        const Value<T> inverse = T(1) / axis.sum;
UNROLL
        for (int u = 0; u < N; u++) row[u] *= inverse;
        return;
      }
      axis.clamp(block.position[at]);
      axis.locate();
      const auto below = axis.low == T(0);
      const Value<T> rest = T(1) - axis.part;
      row[0] = below ? rest : Value<T>{};
      row[1] = below ? axis.part : rest;
      row[2] = below ? Value<T>{} : axis.part;
    }
  }

  // the gradients for position and width in place of both; `mean` is that for the tap
  INLINE void pull_back(
      const Block<T>& block, const Shape& s, int64_t number, int64_t tap,
      const Value<T>* gradient, const Value<T>& mean) const {
    if constexpr (N > 1) {
      const int64_t at = s.row(number, tap);
      Value<T>& position = block.position[at];
      if constexpr (F != bilinear) {
        axis.template pull_back<F>(
            gradient, mean, block.taps[tap], position, block.width + at);
        return;
      }
      const auto below = axis.low == T(0);
      const Value<T> moved = below ? gradient[1] - gradient[0] : gradient[2] - gradient[1];
      const auto inside = (position >= -axis.centre) & (position <= axis.centre);
      position = inside ? moved * block.taps[tap] : Value<T>{};
    }
  }
};

template <class T, int F, int A, int B, int C>
CLONES void build_three(
    const Data<T>& data, const Shape& s, int64_t first, int64_t last, Value<T>* memory) {
  Block<T> block(memory, s, F != bilinear);
  Profile<T, F, A> a;
  Profile<T, F, B> b;
  Profile<T, F, C> c;
  for (int64_t pair = first * Lanes<T>::count; first < last; first++, pair += Lanes<T>::count) {
    const int64_t lanes = std::min(Lanes<T>::count, s.pairs - pair);
    block.fill(data, s, pair, lanes);
    Value<T> kernel[A * B * C] = {};
    for (int64_t k = 0; k < s.taps; k++) {
      a.set(block, s, 0, k);
      b.set(block, s, 1, k);
      c.set(block, s, 2, k);
UNROLL
      for (int i = 0; i < A; i++)
UNROLL
        for (int j = 0; j < B; j++) {
          const Value<T> line = block.taps[k] * a.row[i] * b.row[j];
UNROLL
          for (int u = 0; u < C; u++) kernel[(i * B + j) * C + u] += line * c.row[u];
        }
    }
    store(kernel, data.kernel + pair * (A * B * C), A * B * C, lanes);
  }
}

template <class T, int F, int A, int B, int C>
CLONES void differentiate_three(
    const Data<T>& data, const Shape& s, int64_t first, int64_t last, Value<T>* memory) {
  Block<T> block(memory, s, F != bilinear);
  Profile<T, F, A> a;
  Profile<T, F, B> b;
  Profile<T, F, C> c;
  for (int64_t pair = first * Lanes<T>::count; first < last; first++, pair += Lanes<T>::count) {
    const int64_t lanes = std::min(Lanes<T>::count, s.pairs - pair);
    block.fill(data, s, pair, lanes);
    Value<T> kernel[A * B * C];
    load(kernel, data.kernel_gradient + pair * (A * B * C), A * B * C, lanes);
    for (int64_t k = 0; k < s.taps; k++) {
      a.set(block, s, 0, k);
      b.set(block, s, 1, k);
      c.set(block, s, 2, k);
      Value<T> by_a[A], by_b[B] = {}, by_c[C] = {}, mean{};
UNROLL
      for (int i = 0; i < A; i++) {
        Value<T> plane{};
UNROLL
        for (int j = 0; j < B; j++) {
          const Value<T> left = a.row[i] * b.row[j];
          Value<T> line{};
UNROLL
          for (int u = 0; u < C; u++) {
            const Value<T>& entry = kernel[(i * B + j) * C + u];
            line += entry * c.row[u];
            by_c[u] += entry * left;
          }
          by_b[j] += line * a.row[i];
          plane += line * b.row[j];
        }
        by_a[i] = plane;
        mean += plane * a.row[i];
      }
      a.pull_back(block, s, 0, k, by_a, mean);
      b.pull_back(block, s, 1, k, by_b, mean);
      c.pull_back(block, s, 2, k, by_c, mean);
      block.taps[k] = mean;
    }
    block.drain(data, s, pair, lanes);
  }
}

// The cells that a tap lies in: positions within them along each axis, and the lowest corner's
// entry for each lane. Corner c is `offset[c]` entries further: bit a of c is a step along axis a.
template <class T, int D>
struct Cell {
  Value<T> part[D];
  typename Lanes<T>::Int corner[Lanes<T>::count];
  int64_t offset[1 << D];

  INLINE explicit Cell(const Shape& s) {
    for (int c = 0; c < 1 << D; c++) {
      offset[c] = 0;
      int64_t step = 1;
      for (int a = D - 1; a >= 0; step *= s.size[3 - D + a--])
        if (c >> a & 1 && s.size[3 - D + a] > 1) offset[c] += step;
    }
  }

  INLINE void locate(const Block<T>& block, const Shape& s, int64_t tap) {
    Index<T> low{};
    Value<T>* none = nullptr;
    for (int a = 0; a < D; a++) {
      const int64_t size = s.size[3 - D + a];
      Axis<T> axis = new_axis<T>(size, none);
      axis.clamp(block.position[a * s.taps + tap]);
      axis.locate();
      part[a] = axis.part;
      low = low * typename Lanes<T>::Int(size) + __builtin_convertvector(axis.low, Index<T>);
    }
    std::memcpy(corner, &low, sizeof corner);
  }
};

template <class T, int D>
CLONES void scatter(
    const Data<T>& data, const Shape& s, int64_t first, int64_t last, Value<T>* memory) {
  Block<T> block(memory, s, false);
  Cell<T, D> cell(s);
  const int64_t entries = s.entries();
  Value<T> weight[1 << D];
  const T* lane = reinterpret_cast<const T*>(weight);
  for (int64_t pair = first * Lanes<T>::count; first < last; first++, pair += Lanes<T>::count) {
    const int64_t lanes = std::min(Lanes<T>::count, s.pairs - pair);
    block.fill(data, s, pair, lanes);
    std::fill(data.kernel + pair * entries, data.kernel + (pair + lanes) * entries, T(0));
    for (int64_t k = 0; k < s.taps; k++) {
      cell.locate(block, s, k);
      weight[0] = block.taps[k];
      for (int a = 0; a < D; a++)
        for (int c = 0; c < 1 << a; c++) {
          weight[c + (1 << a)] = weight[c] * cell.part[a];
          weight[c] -= weight[c + (1 << a)];
        }
      for (int64_t l = 0; l < lanes; l++) {
        T* kernel = data.kernel + (pair + l) * entries + cell.corner[l];
        for (int c = 0; c < 1 << D; c++) kernel[cell.offset[c]] += lane[c * Lanes<T>::count + l];
      }
    }
  }
}

template <class T, int D>
CLONES void gather(
    const Data<T>& data, const Shape& s, int64_t first, int64_t last, Value<T>* memory) {
  Block<T> block(memory, s, false);
  Cell<T, D> cell(s);
  const int64_t entries = s.entries();
  Value<T> value[1 << D] = {};
  T* lane = reinterpret_cast<T*>(value);
  for (int64_t pair = first * Lanes<T>::count; first < last; first++, pair += Lanes<T>::count) {
    const int64_t lanes = std::min(Lanes<T>::count, s.pairs - pair);
    block.fill(data, s, pair, lanes);
    for (int64_t k = 0; k < s.taps; k++) {
      cell.locate(block, s, k);
      for (int64_t l = 0; l < lanes; l++) {
        const T* kernel = data.kernel_gradient + (pair + l) * entries + cell.corner[l];
        for (int c = 0; c < 1 << D; c++) lane[c * Lanes<T>::count + l] = kernel[cell.offset[c]];
      }
      const Value<T> weight = block.taps[k];
      // interpolated along the axes but one, whose difference is the slope; the last time along all
      for (int moved = 0; moved <= D; moved++) {
        Value<T> left[1 << D];
        std::copy(value, value + (1 << D), left);
        for (int a = D - 1; a >= 0; a--)
          for (int c = 0; c < 1 << a; c++) {
            const Value<T> step = left[c + (1 << a)] - left[c];
            left[c] = a == moved ? step : left[c] + cell.part[a] * step;
          }
        if (moved == D) {
          block.taps[k] = left[0];
          continue;
        }
        Value<T>& position = block.position[moved * s.taps + k];
        const T centre = T(s.size[3 - D + moved] - 1) / T(2);
        const auto inside = (position >= -centre) & (position <= centre);
        position = inside ? weight * left[0] : Value<T>{};
      }
    }
    block.drain(data, s, pair, lanes);
  }
}

template <class T>
using Work = void (*)(const Data<T>&, const Shape&, int64_t, int64_t, Value<T>*);

template <class T, int F>
Work<T> choose(const Shape& s, bool backward) {
  const bool three = std::count(s.size, s.size + 3, 3) == s.dim;
  // every footprint and dtype would take twice the time to compile; gauss is the slowest of them
  if constexpr (F == bilinear || (F == gauss && std::is_same_v<T, float>))
    if (three && s.dim == 2)
      return backward ? differentiate_three<T, F, 1, 3, 3> : build_three<T, F, 1, 3, 3>;
  if constexpr (F == bilinear) {
    if (three && s.dim == 1)
      return backward ? differentiate_three<T, F, 1, 1, 3> : build_three<T, F, 1, 1, 3>;
    if (three) return backward ? differentiate_three<T, F, 3, 3, 3> : build_three<T, F, 3, 3, 3>;
    if (s.entries() > SMALL) {
      if (s.dim == 1) return backward ? gather<T, 1> : scatter<T, 1>;
      if (s.dim == 2) return backward ? gather<T, 2> : scatter<T, 2>;
      return backward ? gather<T, 3> : scatter<T, 3>;
    }
  }
  return backward ? differentiate<T, F> : build<T, F>;
}

template <class T>
Work<T> choose(Footprint footprint, const Shape& s, bool backward) {
  if (footprint == gauss) return choose<T, gauss>(s, backward);
  if (footprint == triangle) return choose<T, triangle>(s, backward);
  return choose<T, bilinear>(s, backward);
}

template <class T>
void run(Footprint footprint, const Shape& s, const Data<T>& data, bool backward) {
  const bool sparse = footprint == bilinear && s.entries() > SMALL;
  const Work<T> work = choose<T>(footprint, s, backward);
  const int64_t blocks = (s.pairs + Lanes<T>::count - 1) / Lanes<T>::count;
  const int64_t rows =
      s.rows(footprint != bilinear) + (sparse ? 0 : 2 * s.profiles() + s.entries());
  // cycles of a block, roughly; a thread is worth waking for 40,000
  const int64_t each = sparse ? 20 * Lanes<T>::count : 20 * s.profiles() + 2 * s.entries();
  const int64_t cycles = (s.taps + 1) * each;
  torch::stable::parallel_for(0, blocks, 40000 / cycles + 1, [&](int64_t first, int64_t last) {
    constexpr std::align_val_t line{64};
    auto* memory =
        static_cast<Value<T>*>(::operator new((rows + 1) * sizeof(Value<T>), line));
    work(data, s, first, last, memory);
    ::operator delete(memory, line);
  });
}

Shape shape_of(const Tensor& taps, const std::vector<int64_t>& size) {
  Shape s{taps.size(0) * taps.size(1), taps.size(2), int64_t(size.size()), {1, 1, 1}};
  STD_TORCH_CHECK(s.dim >= 1 && s.dim <= 3, "size must have one to three axes");
  std::copy(size.begin(), size.end(), s.size + 3 - s.dim);
  return s;
}

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

template <class T>
const T* address(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* target(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

struct Call {
  Tensor taps, position;
  std::optional<Tensor> width;
  Shape shape;
  Footprint footprint;

  Call(
      const Tensor& taps_, const Tensor& position_, const std::optional<Tensor>& width_,
      const std::vector<int64_t>& size, int64_t footprint_)
      : taps(dense(taps_)),
        position(dense(position_)),
        shape(shape_of(taps, size)),
        footprint(Footprint(footprint_)) {
    if (width_) width = dense(*width_);
    STD_TORCH_CHECK(footprint >= bilinear && footprint <= triangle, "unknown footprint");
    STD_TORCH_CHECK(bool(width) == (footprint != bilinear), "a footprint's width is missing");
    const int64_t coordinates = shape.pairs * shape.taps * shape.dim;
    STD_TORCH_CHECK(position.numel() == coordinates, "position does not fit taps");
    STD_TORCH_CHECK(!width || width->numel() == coordinates, "width does not fit taps");
    STD_TORCH_CHECK(position.scalar_type() == taps.scalar_type(), "position has another dtype");
    STD_TORCH_CHECK(
        !width || width->scalar_type() == taps.scalar_type(), "width has another dtype");
  }

  template <class T>
  void operator()(
      const std::optional<Tensor>& kernel_gradient, const std::optional<Tensor>& kernel,
      const std::optional<Tensor>& taps_gradient, const std::optional<Tensor>& position_gradient,
      const std::optional<Tensor>& width_gradient) const {
    run<T>(
        footprint, shape,
        {address<T>(taps), address<T>(position), address<T>(width), address<T>(kernel_gradient),
         target<T>(kernel), target<T>(taps_gradient), target<T>(position_gradient),
         target<T>(width_gradient)},
        bool(kernel_gradient));
  }

  bool doubles() const {
    const auto type = taps.scalar_type();
    const bool wide = type == torch::headeronly::ScalarType::Double;
    STD_TORCH_CHECK(
        wide || type == torch::headeronly::ScalarType::Float, "taps must be float32 or float64");
    return wide;
  }
};

Tensor dcls(
    Tensor taps, Tensor position, std::optional<Tensor> width, std::vector<int64_t> size,
    int64_t footprint) {
  const Call call(taps, position, width, size, footprint);
  std::vector<int64_t> shape{taps.size(0), taps.size(1)};
  shape.insert(shape.end(), size.begin(), size.end());
  Tensor kernel = torch::stable::new_empty(taps, shape);
  if (call.doubles())
    call.operator()<double>({}, kernel, {}, {}, {});
  else
    call.operator()<float>({}, kernel, {}, {}, {});
  return kernel;
}

std::tuple<Tensor, Tensor, Tensor> dcls_backward(
    Tensor grad, Tensor taps, Tensor position, std::optional<Tensor> width,
    std::vector<int64_t> size, int64_t footprint) {
  const Call call(taps, position, width, size, footprint);
  const Tensor above = dense(grad);
  STD_TORCH_CHECK(
      above.numel() == call.shape.pairs * call.shape.entries() &&
          above.scalar_type() == taps.scalar_type(),
      "grad does not fit taps");
  Tensor by_taps = torch::stable::new_empty(taps, taps.sizes());
  Tensor by_position = torch::stable::new_empty(taps, position.sizes());
  const std::vector<int64_t> nothing{0};
  Tensor by_width = width ? torch::stable::new_empty(taps, width->sizes())
                          : torch::stable::new_empty(taps, nothing);
  if (call.doubles())
    call.operator()<double>(above, {}, by_taps, by_position, by_width);
  else
    call.operator()<float>(above, {}, by_taps, by_position, by_width);
  return {by_taps, by_position, by_width};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(omniconv_cpu, m) {
  m.def("dcls(Tensor taps, Tensor position, Tensor? width, int[] size, int footprint) -> Tensor");
  m.def(
      "dcls_backward(Tensor grad, Tensor taps, Tensor position, Tensor? width, int[] size, "
      "int footprint) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(omniconv_cpu, CPU, m) {
  m.impl("dcls", TORCH_BOX(&dcls));
  m.impl("dcls_backward", TORCH_BOX(&dcls_backward));
}
