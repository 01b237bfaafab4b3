// Boxes of positions, copied between tensors of any strides and dense memory of one thread.

#pragma once

#include "turn.h"

#include <algorithm>
#include <cstdint>

namespace {

// Where the lines of a box lie in a tensor. Box index j along an axis is coordinate
// start + j step; coordinates outside of 0 ... limit - 1 are read as 0 and not written.
struct Box {
  int64_t extent[3], start[3], step[3], limit[3];
  int64_t stride[3];           // of the tensor, in elements
  int64_t plane, line;         // of the dense memory, in elements
  int64_t first[3], last[3];   // the indices whose coordinates are inside

  void settle() {
    for (int a = 0; a < 3; a++) {
      const int64_t before = -start[a], after = limit[a] - start[a];
      first[a] = before > 0 ? std::min((before + step[a] - 1) / step[a], extent[a]) : 0;
      last[a] = after > 0 ? std::min((after + step[a] - 1) / step[a], extent[a]) : 0;
      last[a] = std::max(last[a], first[a]);
    }
  }

  // the first number inside of a line, in the tensor
  INLINE int64_t row(int64_t i, int64_t j) const {
    return (start[0] + i * step[0]) * stride[0] + (start[1] + j * step[1]) * stride[1] +
        (start[2] + first[2] * step[2]) * stride[2];
  }
};

template <class S>
INLINE void read_line(const S* from, int64_t stride, Exact<S>* to, int64_t count) {
  using T = Exact<S>;
  constexpr int64_t L = Lanes<T>::count;
  if (stride != 1 || count < L) {
    for (int64_t j = 0; j < count; j++) to[j] = get(from + j * stride);
    return;
  }
  int64_t j = 0;
  for (; j + L <= count; j += L) write(to + j, read(from + j));
  if (j < count) write(to + count - L, read(from + count - L));
}

template <class S>
INLINE void write_line(const Exact<S>* from, S* to, int64_t stride, int64_t count) {
  using T = Exact<S>;
  constexpr int64_t L = Lanes<T>::count;
  if (stride != 1 || count < L) {
    for (int64_t j = 0; j < count; j++) put(to + j * stride, from[j]);
    return;
  }
  int64_t j = 0;
  for (; j + L <= count; j += L) write(to + j, read(from + j));
  if (j < count) write(to + count - L, read(from + count - L));
}

// to[n each + k] = from[k step + n], in squares of four by four
template <class S>
INLINE void read_turned(
    const S* from, int64_t step, Exact<S>* to, int64_t each, int64_t count, int64_t length) {
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) {
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
      Four<Exact<S>> rows[4];
      for (int i = 0; i < 4; i++) rows[i] = read_four(from + (k + i) * step + n);
      turn(rows);
      for (int i = 0; i < 4; i++) write_four(to + (n + i) * each + k, rows[i]);
    }
    for (; k < length; k++)
      for (int i = 0; i < 4; i++) to[(n + i) * each + k] = get(from + k * step + n + i);
  }
  for (; n < count; n++)
    for (int64_t k = 0; k < length; k++) to[n * each + k] = get(from + k * step + n);
}

template <class S>
INLINE void write_turned(
    const Exact<S>* from, int64_t each, S* to, int64_t step, int64_t count, int64_t length) {
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) {
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
      Four<Exact<S>> rows[4];
      for (int i = 0; i < 4; i++) rows[i] = read_four(from + (n + i) * each + k);
      turn(rows);
      for (int i = 0; i < 4; i++) write_four(to + (k + i) * step + n, rows[i]);
    }
    for (; k < length; k++)
      for (int i = 0; i < 4; i++) put(to + k * step + n + i, from[(n + i) * each + k]);
  }
  for (; n < count; n++)
    for (int64_t k = 0; k < length; k++) put(to + k * step + n, from[n * each + k]);
}

// Whether the tensors lie interleaved, element by element.
template <class S>
INLINE bool interleaved(S* const* tensors, int64_t count) {
  for (int64_t m = 1; m < count; m++)
    if (tensors[m] != tensors[m - 1] + 1) return false;
  return count > 1;
}

constexpr int64_t AHEAD = 3;  // tensors from the one being read to the one that is fetched

// The box of several tensors, one after the other at the distance `each`. Of the `known` ones those
// after the first `count` come next.
template <class S>
CLONES void pack(
    const S* const* tensors, int64_t count, int64_t known, const Box& box, Exact<S>* memory,
    int64_t each) {
  using T = Exact<S>;
  const int64_t first = box.first[2], last = box.last[2], length = box.extent[2];
  const int64_t step = box.step[2] * box.stride[2];
  const bool together = step != 1 && interleaved(tensors, count);
  const int64_t batch = together ? count : 1;
  for (int64_t m = 0; m < count; m += batch)
    for (int64_t i = 0; i < box.extent[0]; i++)
      for (int64_t j = 0; j < box.extent[1]; j++) {
        T* to = memory + m * each + i * box.plane + j * box.line;
        const bool inside = i >= box.first[0] && i < box.last[0] && j >= box.first[1] &&
            j < box.last[1] && first < last;
        if (!inside) {
          for (int64_t n = 0; n < batch; n++)
            std::fill(to + n * each, to + n * each + length, T(0));
          continue;
        }
        const S* from = tensors[m] + box.row(i, j);
        for (int64_t n = 0; n < batch; n++) {
          for (int64_t k = 0; k < first; k++) to[n * each + k] = T(0);
          for (int64_t k = last; k < length; k++) to[n * each + k] = T(0);
        }
        if (!together) {
          if (m + AHEAD < known) {
            const S* next = tensors[m + AHEAD] + (from - tensors[m]);
            for (int64_t k = 0; k < last - first; k += 64 / int64_t(sizeof(S)))
              __builtin_prefetch(next + k * step);
          }
          read_line(from, step, to + first, last - first);
          continue;
        }
        if (j + 1 < box.last[1]) {
          const S* next = from + box.step[1] * box.stride[1];
          for (int64_t k = 0; k < last - first; k++)
            for (int64_t n = 0; n < count; n += 64 / int64_t(sizeof(S)))
              __builtin_prefetch(next + k * step + n);
        }
        read_turned(from, step, to + first, each, count, last - first);
      }
}

// The way back; what lies outside is dropped.
template <class S>
CLONES void unpack(
    const Exact<S>* memory, int64_t each, S* const* tensors, int64_t count, const Box& box) {
  using T = Exact<S>;
  const int64_t first = box.first[2], last = box.last[2];
  const int64_t step = box.step[2] * box.stride[2];
  const bool together = step != 1 && interleaved(tensors, count);
  for (int64_t m = 0; m < (together ? 1 : count); m++)
    for (int64_t i = box.first[0]; i < box.last[0]; i++)
      for (int64_t j = box.first[1]; j < box.last[1]; j++) {
        const T* from = memory + m * each + i * box.plane + j * box.line;
        S* to = tensors[m] + box.row(i, j);
        if (!together) {
          if (m + AHEAD < count) {
            S* next = to + (tensors[m + AHEAD] - tensors[m]);
            for (int64_t k = 0; k < last - first; k += 64 / int64_t(sizeof(S)))
              __builtin_prefetch(next + k * step, 1);
          }
          write_line(from + first, to, step, last - first);
          continue;
        }
        write_turned(from + first, each, to, step, count, last - first);
      }
}

}  // namespace
