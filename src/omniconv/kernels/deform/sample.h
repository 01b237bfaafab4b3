// Places where a sample is read, what is read there, and the way back.

#pragma once

#include "problem.h"

namespace {

// n of a vector's numbers
template <class T>
INLINE Value<T> read_some(const T* from, int64_t n) {
  if (n >= Lanes<T>::count) return read(from);
  Value<T> value{};
  std::memcpy(&value, from, n * sizeof(T));
  return value;
}

template <class T>
INLINE void write_some(T* to, const Value<T>& value, int64_t n) {
  if (n >= Lanes<T>::count) return write(to, value);
  std::memcpy(to, &value, n * sizeof(T));
}

// The cells of a vector of points, for one tap.
template <class T, int D>
struct Cells {
  Index<T> pixel;               // the lowest corner
  Value<T> part[D], moving[D];  // 1 where a place moves with its offset, else 0

  // `base`: the points' first places, `shift`: the tap's, `offset`: its n offsets along each axis
  INLINE void find(
      const Problem& s, const T* base, const T* shift, const T* offset, int64_t n) {
    const Value<T> zero{}, one = T(1) + zero;
    pixel = Index<T>{};
    for (int a = 0; a < D; a++) {
      const T end = T(s.size[a]);
      Value<T> place = read(base + a * POINTS) + shift[a];
      place += read_some(offset + a * s.points, n);
      // selected numbers, not masks: these would be taken apart on AVX-512
      moving[a] = place >= T(-1) ? (place <= end ? one : zero) : zero;
      place = place < T(-1) ? -one : place;
      place = place > end ? end + zero : place;
      const Value<T> number = place >= T(-1) ? place : -one;  // no NaN
      Value<T> low = __builtin_convertvector(__builtin_convertvector(number, Index<T>), Value<T>);
      low = low > number ? low - one : low;
      part[a] = place - low;
      pixel = pixel * Int<T>(s.size[a] + 3) + __builtin_convertvector(low + one, Index<T>);
    }
  }
};

// Of a tap and n points of a tile: lowest pixels, and the corners' weights, mask included.
template <class T>
struct Places {
  Int<T>* pixel;
  T* weight;  // [corner][POINTS]
};

template <class T, int D>
CLONES void locate(
    const Problem& s, const T* base, const T* shift, const T* offset, const T* mask, int64_t n,
    const Places<T>& to) {
  constexpr int64_t L = Lanes<T>::count;
  Cells<T, D> cells;
  for (int64_t i = 0; i < n; i += L) {
    cells.find(s, base + i, shift, offset + i, n - i);
    for (int a = 0; a < D; a++) __builtin_prefetch(offset + a * s.points + i + POINTS);
    if (mask) __builtin_prefetch(mask + i + POINTS);
    std::memcpy(to.pixel + i, &cells.pixel, sizeof cells.pixel);
    Value<T> weight[1 << D];
    weight[0] = mask ? read_some(mask + i, n - i) : T(1) + Value<T>{};
    for (int a = 0; a < D; a++)
      for (int c = (1 << a) - 1; c >= 0; c--) {
        const Value<T> whole = weight[c];
        weight[2 * c + 1] = whole * cells.part[a];
        weight[2 * c] = whole * (T(1) - cells.part[a]);
      }
    for (int c = 0; c < 1 << D; c++) write(to.weight + c * POINTS + i, weight[c]);
  }
}

// A problem's corners where the compiler sees that nothing writes to them.
template <int C>
struct Corners {
  int64_t at[C];

  INLINE explicit Corners(const Problem& s) { std::copy(s.corner, s.corner + C, at); }
};

// columns[p][channel]: samples of the channels that share these places. The last vector writes
// behind them; what belongs there is written later.
template <class T, int C>
CLONES void gather(
    const Problem& s, const T* x, const Places<T>& places, int64_t n, T* columns, int64_t row) {
  constexpr int64_t L = Lanes<T>::count;
  const Corners<C> corner(s);
  const int64_t shared = s.shared;
  const Int<T>* pixel = places.pixel;
  const T* weight = places.weight;
  for (int64_t p = 0; p < n; p++) {
    const T* from = x + pixel[p] * shared;
    Value<T> w[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) w[c] = weight[c * POINTS + p] + Value<T>{};
    for (int64_t v = 0; v < shared; v += L) {
      Value<T> sum = w[0] * read(from + v);
#pragma GCC unroll 8
      for (int c = 1; c < C; c++) sum += w[c] * read(from + corner.at[c] + v);
      write(columns + v, sum);
    }
    columns += row;
  }
}

template <class T, int C, int V>
INLINE void sum_taps(
    const Problem& s, const T* x, const Places<T>& places, const T* factor, int64_t n, T* to) {
  constexpr int64_t L = Lanes<T>::count;
  const Corners<C> corner(s);
  const int64_t taps = s.taps, shared = s.shared, padded = s.padded;
  for (int64_t p = 0; p < n; p++) {
    Value<T> sum[V] = {};
    for (int64_t q = 0; q < taps; q++) {
      const T* from = x + places.pixel[q * POINTS + p] * shared;
      const T* weight = places.weight + q * C * POINTS + p;
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        Value<T> sample = weight[0] * read(from + v * L);
#pragma GCC unroll 8
        for (int c = 1; c < C; c++)
          sample += weight[c * POINTS] * read(from + corner.at[c] + v * L);
        sum[v] += factor ? read(factor + q * padded + v * L) * sample : sample;
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) write(to + p * (padded + L) + v * L, sum[v]);
  }
}

// to[p][channel] = sum over taps, times `factor[tap][channel]` where there is one; `places` has
// those of every tap. The last vector writes behind the channels, as in `gather`.
template <class T, int C>
CLONES void aggregate(
    const Problem& s, const T* x, const Places<T>& places, const T* factor, int64_t n, T* to) {
  constexpr int64_t L = Lanes<T>::count;
  int64_t left = (s.shared + L - 1) / L;
  for (int64_t step; left > 0; left -= step, x += step * L, to += step * L) {
    if (left >= 4) {
      step = 4;
      sum_taps<T, C, 4>(s, x, places, factor, n, to);
    } else {
      step = 1;
      sum_taps<T, C, 1>(s, x, places, factor, n, to);
    }
    if (factor) factor += step * L;
  }
}

// lane i = the sum of rows[i * step]
template <class T>
INLINE Value<T> sums(const Value<T>* rows, int64_t step) {
  Value<T> found{};
  for (int64_t i = 0; i < Lanes<T>::count; i++)
    for (int64_t j = 0; j < Lanes<T>::count; j++) found[i] += rows[i * step][j];
  return found;
}

#if __has_builtin(__builtin_shufflevector)
template <>
INLINE Value<float> sums<float>(const Value<float>* rows, int64_t step) {
  Value<float> found;
  for (int64_t i = 0; i < 16; i += 4) {
    Four quarter[4];
    for (int64_t r = 0; r < 4; r++) {
      Four part[4];
      std::memcpy(part, rows + (i + r) * step, sizeof part);
      quarter[r] = (part[0] + part[1]) + (part[2] + part[3]);
    }
    const Four low = __builtin_shufflevector(quarter[0], quarter[1], 0, 4, 1, 5) +
                     __builtin_shufflevector(quarter[0], quarter[1], 2, 6, 3, 7);
    const Four high = __builtin_shufflevector(quarter[2], quarter[3], 0, 4, 1, 5) +
                      __builtin_shufflevector(quarter[2], quarter[3], 2, 6, 3, 7);
    const Four four = __builtin_shufflevector(low, high, 0, 1, 4, 5) +
                      __builtin_shufflevector(low, high, 2, 3, 6, 7);
    std::memcpy(reinterpret_cast<float*>(&found) + i, &four, sizeof four);
  }
  return found;
}
#endif

// What `spread` reads and writes, for the channels that share places: null where it is not needed.
template <class T>
struct Spread {
  const T *base, *shift, *offset, *mask, *x, *grad;
  int64_t grad_row;  // grad[p][channel]: gradients for samples times mask
  T *by_x, *by_offset, *by_mask;
};

// The gradients of n points' samples: added to x, written for offset and mask.
template <class T, int D>
CLONES void spread(const Problem& s, const Spread<T>& d, const Places<T>& places, int64_t n) {
  constexpr int64_t L = Lanes<T>::count;
  constexpr int C = 1 << D;
  const Corners<C> corner(s);
  const int64_t shared = s.shared, full = shared / L * L, row = d.grad_row;
  const bool places_too = d.by_offset || d.by_mask;
  const T *x = d.x, *grad = d.grad, *weight = places.weight;
  T* by_x = d.by_x;
  Index<T> lane;
  for (int64_t l = 0; l < L; l++) lane[l] = Int<T>(l);
  const Index<T> rest = Int<T>(shared - full) + Index<T>{};
  Value<T> dots[L * C];
  for (int64_t i = 0; i < n; i += L) {
    const int64_t lanes = std::min(L, n - i);
    if (d.by_mask) __builtin_prefetch(d.by_mask + i, 1);
    for (int a = 0; d.by_offset && a < D; a++)
      __builtin_prefetch(d.by_offset + a * s.points + i, 1);
    for (int64_t p = 0; p < lanes; p++, grad += row) {
      const int64_t at = places.pixel[i + p] * shared;
      Value<T> w[C], dot[C] = {};
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) w[c] = weight[c * POINTS + i + p] + Value<T>{};
      for (int64_t v = 0; v < full; v += L) {
        const Value<T> g = read(grad + v);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
          const int64_t place = at + corner.at[c] + v;
          if (places_too) dot[c] += g * read(x + place);
          if (by_x) write(by_x + place, read(by_x + place) + w[c] * g);
        }
      }
      if (full < shared) {
        const Value<T> g = read(grad + full);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
          const int64_t place = at + corner.at[c] + full;
          if (places_too) dot[c] += lane < rest ? g * read(x + place) : Value<T>{};
          if (by_x) {
            const Value<T> share = lane < rest ? w[c] * g : Value<T>{};
            write(by_x + place, read(by_x + place) + share);
          }
        }
      }
      if (places_too) std::copy(dot, dot + C, dots + p * C);
    }
    if (!places_too) continue;
    Cells<T, D> cells;
    cells.find(s, d.base + i, d.shift, d.offset + i, lanes);
    Value<T> corners[C];
    for (int c = 0; c < C; c++) corners[c] = sums<T>(dots + c, C);
    const Value<T> mask = d.mask ? read_some(d.mask + i, lanes) : T(1) + Value<T>{};
    // interpolated along the axes but one, whose difference is the slope; the last time along all
    for (int moved = 0; moved <= D; moved++) {
      if (!(moved == D ? d.by_mask : d.by_offset)) continue;
      Value<T> left[C];
      std::copy(corners, corners + C, left);
      for (int a = D - 1; a >= 0; a--)
        for (int c = 0; c < 1 << a; c++) {
          const Value<T> step = left[2 * c + 1] - left[2 * c];
          left[c] = a == moved ? step : left[2 * c] + cells.part[a] * step;
        }
      if (moved == D)
        write_some(d.by_mask + i, left[0], lanes);
      else
        write_some(
            d.by_offset + moved * s.points + i,
            cells.moving[moved] > T(0) ? mask * left[0] : Value<T>{}, lanes);
    }
  }
}

}  // namespace
