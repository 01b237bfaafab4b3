// Sizes of a deformable convolution, and copies between torch's layout and the kernel's.

#pragma once

#include "../element.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t POINTS = 48;  // output positions of a tile

template <class T>
using Int = typename Lanes<T>::Int;

template <class T>
constexpr int64_t rounded(int64_t count) {
  return (count + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count;
}

// A sample is kept one offset group after the other, pixel by pixel, the group's `shared` channels
// side by side. There are zeros from -1 to S + 1 along each axis, so that the corners of any cell
// that counts are in memory. Corner c of 2^D lies `corner[c]` numbers behind the lowest; the first
// axis is its highest bit.
struct Problem {
  int64_t batch, channels, outputs, dim, groups, offset_groups;
  int64_t size[3], out[3], kernel[3], stride[3], low[3], dilation[3];
  int64_t taps, points, pixels, shared, padded, corner[8];
  bool depthwise;

  template <class T>
  void finish() {
    taps = points = pixels = 1;
    for (int64_t a = 0; a < dim; a++) {
      taps *= kernel[a];
      points *= out[a];
      pixels *= size[a] + 3;
    }
    shared = channels / offset_groups;
    padded = rounded<T>(channels);
    for (int64_t c = 0; c < 1 << dim; c++) {
      corner[c] = 0;
      for (int64_t a = 0; a < dim; a++)
        corner[c] = corner[c] * (size[a] + 3) + (c >> (dim - 1 - a) & 1);
      corner[c] *= shared;
    }
    depthwise = outputs > 0 && groups == channels && channels > 1;
  }

  // numbers of a sample, and of what a vector may read behind it
  template <class T>
  int64_t numbers() const {
    return pixels * channels + Lanes<T>::count;
  }
  int64_t start(int64_t group) const { return group * pixels * shared; }
  int64_t tiles() const { return (points + POINTS - 1) / POINTS; }
  int64_t rows() const { return pixels / (size[dim - 1] + 3); }
  int64_t in_group() const { return channels / groups; }
  int64_t out_group() const { return outputs / groups; }

  // of a row of the sample as it is kept: which row of x it is, or -1 for zeros
  int64_t source(int64_t row) const {
    int64_t found = 0, step = 1;
    for (int64_t a = dim - 2; a >= 0; a--) {
      const int64_t place = row % (size[a] + 3) - 1;
      if (place < 0 || place >= size[a]) return -1;
      row /= size[a] + 3;
      found += place * step;
      step *= size[a];
    }
    return found;
  }
};

// target[j][i] = source[i][j] of matrices whose rows lie so far apart
template <class T>
void transpose(
    const T* source, int64_t source_row, T* target, int64_t target_row, int64_t rows,
    int64_t columns) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++)
      target[j * target_row + i] = source[i * source_row + j];
}

#if __has_builtin(__builtin_shufflevector)
typedef float Four __attribute__((vector_size(16)));

inline void transpose(
    const float* source, int64_t source_row, float* target, int64_t target_row, int64_t rows,
    int64_t columns) {
  const int64_t high = rows & ~3, wide = columns & ~3;
  for (int64_t i = 0; i < high; i += 4)
    for (int64_t j = 0; j < wide; j += 4) {
      Four row[4], half[4];
#pragma GCC unroll 4
      for (int64_t k = 0; k < 4; k++)
        std::memcpy(row + k, source + (i + k) * source_row + j, sizeof(Four));
      half[0] = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
      half[1] = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
      half[2] = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
      half[3] = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
#pragma GCC unroll 2
      for (int64_t k = 0; k < 2; k++) {
        row[2 * k] = __builtin_shufflevector(half[2 * k], half[2 * k + 1], 0, 1, 4, 5);
        row[2 * k + 1] = __builtin_shufflevector(half[2 * k], half[2 * k + 1], 2, 3, 6, 7);
      }
#pragma GCC unroll 4
      for (int64_t k = 0; k < 4; k++)
        std::memcpy(target + (j + k) * target_row + i, row + k, sizeof(Four));
    }
  transpose<float>(source + wide, source_row, target + wide * target_row, target_row, high,
                   columns - wide);
  transpose<float>(source + high * source_row, source_row, target + high, target_row, rows - high,
                   columns);
}
#endif

// Channels of an offset group that are copied at once: as many streams as a processor foresees.
struct Strip {
  int64_t group, first, count;

  Strip(const Problem& s, int64_t number)
      : group(number / each(s)),
        first(number % each(s) * 16),
        count(std::min<int64_t>(16, s.shared - first)) {}
  static int64_t each(const Problem& s) { return (s.shared + 15) / 16; }
  static int64_t all(const Problem& s) { return s.offset_groups * each(s); }
};

// A strip of a sample of x, channels `step` numbers apart and pixels `along`, as it is kept.
template <class T>
void keep(const Problem& s, const T* x, int64_t step, int64_t along, const Strip& strip, T* kept) {
  const int64_t length = s.size[s.dim - 1], rows = s.rows();
  T* to = kept + s.start(strip.group) + strip.first;
  x += (strip.group * s.shared + strip.first) * step;
  const auto clear = [&](int64_t count) {
    for (; count; count--, to += s.shared) std::fill(to, to + strip.count, T(0));
  };
  for (int64_t row = 0; row < rows; row++) {
    const int64_t source = s.source(row);
    if (source < 0) {
      clear(length + 3);
      continue;
    }
    clear(1);
    const T* from = x + source * length * along;
    if (step == 1)
      for (int64_t i = 0; i < length; i++)
        std::copy(from + i * along, from + i * along + strip.count, to + i * s.shared);
    else
      transpose(from, step, to, s.shared, strip.count, length);
    to += length * s.shared;
    clear(2);
  }
}

}  // namespace
