// The inner loop of all three passes: correlations of lines of vectors.

#pragma once

#include "../vector.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace {

template <class T>
struct Line {
  const Value<T>*h, *x;
};

// between entries of h, of x, of what the sums start from, of the sums
struct Steps {
  int64_t h, x, start, out;
};

// n entries of every line, from these on
struct Part {
  int64_t h, x, n;
};

// N entries of h for P sums; an entry of x is read once. Few sums are kept Q times, so that
// additions need not wait for each other.
template <class T, int P, int Q, int N, bool UNIT>
INLINE void add(
    Value<T> (&sum)[Q][P], const Value<T>* h, int64_t h_step, const Value<T>* x, int64_t x_step) {
  Value<T> factor[N];
#pragma GCC unroll 4
  for (int k = 0; k < N; k++) factor[k] = h[k * h_step];
#pragma GCC unroll 32
  for (int j = 0; j < P + N - 1; j++) {
    const Value<T> entry = x[UNIT ? j : j * x_step];
#pragma GCC unroll 4
    for (int k = 0; k < N; k++)
      if (j >= k && j < P + k) sum[k % Q][j - k] += factor[k] * entry;
  }
}

// out[a] = start[a] + sum over lines and k < n of h[k] x[a + k], for a < P
template <class T, int P, bool UNIT>
CLONES void correlate(
    const Line<T>* line, int64_t count, const Part& part, const Steps& step,
    const Value<T>* start, Value<T>* out) {
  constexpr int Q = P > 8 ? 1 : P > 3 ? 2 : 4;
  Value<T> sum[Q][P] = {};
  const int64_t h_step = step.h, x_step = step.x;
  for (; count > 0; count--, line++) {
    const Value<T>*h = line->h + part.h, *x = line->x + part.x;
    int64_t n = part.n;
    for (; n >= 4; n -= 4, h += 4 * h_step, x += 4 * x_step)
      add<T, P, Q, 4, UNIT>(sum, h, h_step, x, x_step);
    if (n == 3) add<T, P, Q, 3, UNIT>(sum, h, h_step, x, x_step);
    if (n == 2) add<T, P, Q, 2, UNIT>(sum, h, h_step, x, x_step);
    if (n == 1) add<T, P, Q, 1, UNIT>(sum, h, h_step, x, x_step);
  }
#pragma GCC unroll 16
  for (int a = 0; a < P; a++) {
    Value<T> all = sum[0][a];
#pragma GCC unroll 4
    for (int q = 1; q < Q; q++) all += sum[q][a];
    out[a * step.out] = start[a * step.start] + all;
  }
}

template <class T>
using Correlate = void (*)(
    const Line<T>*, int64_t, const Part&, const Steps&, const Value<T>*, Value<T>*);

constexpr int64_t WIDEST = 16;  // sums of a tile

template <class T, bool UNIT, int... P>
Correlate<T> listed(int64_t number, std::integer_sequence<int, P...>) {
  constexpr Correlate<T> all[] = {correlate<T, P, UNIT>...};
  return all[number];
}

// As many vectors of 64 bytes as registers hold besides what they are computed from.
inline int64_t most_sums() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") ? WIDEST : 4;
#else
  return 8;
#endif
}

// The function for as many of `left` sums as one takes, and how many those are.
template <class T>
Correlate<T> correlate_for(int64_t left, bool unit, int64_t* taken) {
  static const int64_t most = most_sums();
  if constexpr (sizeof(T) == 4)
    if (unit) {
      const int64_t tiles = (left + most - 1) / most;
      *taken = (left + tiles - 1) / tiles;
      return listed<T, true>(
          *taken, std::integer_sequence<
                      int, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>());
    }
  int number = 3;
  while (1 << number > std::min(left, most)) number--;
  *taken = 1 << number;
  const std::integer_sequence<int, 1, 2, 4, 8> widths;
  return unit ? listed<T, true>(number, widths) : listed<T, false>(number, widths);
}

}  // namespace
