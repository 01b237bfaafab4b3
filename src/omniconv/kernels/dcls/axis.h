// One tap per vector lane: the lanes, and the tap's profile along one axis with its derivatives.

#pragma once

#include "../exponential.h"
#include "../vector.h"

#include <algorithm>
#include <cstdint>

namespace {

enum Footprint { bilinear, gauss, triangle };

// Axes of a kernel of fewer than three axes are the last ones; those before them have size 1.
struct Shape {
  int64_t pairs, taps, dim;
  int64_t size[3];

  int64_t entries() const { return size[0] * size[1] * size[2]; }
  int64_t profiles() const { return size[0] + size[1] + size[2]; }
  int64_t rows(bool width) const { return taps * (1 + dim * (1 + width)); }
  bool real(int64_t axis) const { return axis >= 3 - dim; }
  int64_t row(int64_t axis, int64_t tap) const { return (axis - (3 - dim)) * taps + tap; }
};

// One axis of one tap of every lane.
template <class T>
struct Axis {
  int64_t size, first, last;  // the entries from first to last - 1 are all that count
  T centre;
  Value<T>* row;  // the profile, not divided by its sum
  Value<T> place, sigma, sum;
  Value<T> low, part;  // bilinear: the cell's lower entry, and the position in the cell

  INLINE void clamp(const Value<T>& position) {  // NaN stays NaN
    place = position < -centre ? -centre + Value<T>{} : position;
    place = place > centre ? centre + Value<T>{} : place;
  }

  // On an entry the cell above counts, on the last one the cell below. NaN: cell 0, part NaN.
  INLINE void locate() {
    const T half = T((size - 1) / 2), most = T(std::max<int64_t>(size - 2, 0));
    Value<T> shifted = place + (centre - half);
    Value<T> from = shifted + half;
    from = from > T(0) ? from : Value<T>{};
    from = __builtin_convertvector(__builtin_convertvector(from, Index<T>), Value<T>);
    from = from - half > shifted ? from - T(1) : from;  // the sum above was rounded up
    from = from > T(0) ? from : Value<T>{};
    low = from < most ? from : most + Value<T>{};
    part = shifted - (low - half);
  }

  INLINE void window(const Value<T>& reach) {
    first = 0;
    last = size;
    if (size <= 4) return;
    const T end = T(size);
    Value<T> from = place - reach + centre, to = place + reach + (centre + T(1));
    from = from > T(0) ? from : Value<T>{};
    from = from < end ? from : end + Value<T>{};
    to = to < end ? to : end + Value<T>{};
    Index<T> lower = __builtin_convertvector(from, Index<T>);
    Index<T> upper = __builtin_convertvector(to, Index<T>);
    typename Lanes<T>::Int least = lower[0], most = upper[0];
    for (int64_t l = 1; l < Lanes<T>::count; l++) {
      least = std::min(least, lower[l]);
      most = std::max(most, upper[l]);
    }
    first = least;
    last = std::min<int64_t>(most + 1, size);
  }

  INLINE Value<T> distance(int64_t u) const { return (T(u) - centre) - place; }

  template <int F>
  INLINE void profile(const Value<T>& position, const Value<T>* width) {
    clamp(position);
    if (F == bilinear) {
      locate();
      window(T(1) + Value<T>{});
      for (int64_t u = first; u < last; u++) {
        Value<T> value = low == T(u) ? T(1) - part : Value<T>{};
        row[u] = low == T(u - 1) ? part : value;
      }
      return;
    }
    sigma = (F == gauss ? T(0.27) : T(1)) + (*width < T(0) ? -*width : *width);
    sum = Value<T>{};
    if (F == gauss) {
      window(T(9) * sigma);
      const Value<T> scale = T(-0.5) / (sigma * sigma);
      for (int64_t u = first; u < last; u++) {
        const Value<T> x = distance(u), power = x * x * scale;
        Value<T> value = power < T(-40) ? T(-40) + Value<T>{} : power;
        exponential(value);
        value = power < T(-40) ? Value<T>{} : value;
        row[u] = value;
        sum += value;
      }
    } else {
      window(sigma);
      for (int64_t u = first; u < last; u++) {
        const Value<T> x = distance(u), value = sigma - (x < T(0) ? -x : x);
        row[u] = value < T(0) ? Value<T>{} : value;
        sum += row[u];
      }
    }
  }

  // Gradients for position and width from those for the profile divided by its sum, of which
  // `mean` is the profile's average.
  template <int F>
  INLINE void pull_back(
      const Value<T>* gradient, const Value<T>& mean, const Value<T>& weight, Value<T>& position,
      Value<T>* width) const {
    Value<T> moved{}, widened{};
    if (F == bilinear) {
      if (size > 1)
        for (int64_t u = first; u < last; u++) {
          moved -= low == T(u) ? gradient[u] : Value<T>{};
          moved += low == T(u - 1) ? gradient[u] : Value<T>{};
        }
      moved *= weight;
    } else {
      const Value<T> inverse = T(1) / sigma;
      for (int64_t u = first; u < last; u++) {
        const Value<T> x = distance(u);
        Value<T> each = gradient[u] - mean;
        if (F == gauss) {
          each *= row[u] * x;
          moved += each;
          widened += each * x;
        } else {
          each = sigma - (x < T(0) ? -x : x) >= T(0) ? each : Value<T>{};
          widened += each;
          moved += x > T(0) ? each : (x < T(0) ? -each : Value<T>{});
        }
      }
      Value<T> factor = F == gauss ? weight * inverse * inverse : weight / sum;
      moved *= factor;
      widened *= F == gauss ? factor * inverse : factor;
      *width = *width < T(0) ? -widened : widened;
    }
    const auto inside = (position >= -centre) & (position <= centre);
    position = inside ? moved : Value<T>{};
  }
};

template <class T>
INLINE Axis<T> new_axis(int64_t size, Value<T>*& row) {
  Axis<T> axis;
  axis.size = size;
  axis.centre = T(size - 1) / T(2);
  axis.row = row;
  row += size;
  return axis;
}

}  // namespace
