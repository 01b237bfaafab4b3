// Products of small matrices, as a tile of a convolution needs them.

#pragma once

#include "problem.h"

// Compiled for AVX-512 alone, or for OMNICONV_ARCH; `width` says whether it may run.
#if defined(__x86_64__) && !defined(OMNICONV_ARCH)
#define WIDE __attribute__((target("arch=x86-64-v4")))
#else
#define WIDE CLONES
#endif

namespace {

// Numbers from `data`, those of the next row and of the next term of the sum so far apart.
template <class T>
struct Left {
  const T* data;
  int64_t row, term;
};

// Blocks of columns so far apart; within a block, terms.
template <class T>
struct Right {
  const T* data;
  int64_t block, term;
};

template <class T, int R, int V>
INLINE void product(
    int64_t terms, const T* left, int64_t row, int64_t step, const T* right, int64_t term, T* to,
    int64_t to_row, bool add) {
  constexpr int64_t L = Lanes<T>::count;
  Value<T> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[r][v] = add ? read(to + r * to_row + v * L) : Value<T>{};
  for (int64_t k = 0; k < terms; k++) {
    Value<T> b[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) b[v] = read(right + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const T a = left[r * row];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sum[r][v] += a * b[v];
    }
    left += step;
    right += term;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) write(to + r * to_row + v * L, sum[r][v]);
}

template <class T, int V>
INLINE void strip(
    int64_t rows, int64_t terms, const Left<T>& left, const T* right, int64_t term, T* to,
    int64_t to_row, bool add) {
  int64_t i = 0;
  for (; i + 6 <= rows; i += 6)
    product<T, 6, V>(
        terms, left.data + i * left.row, left.row, left.term, right, term, to + i * to_row, to_row,
        add);
  for (; i + 2 <= rows; i += 2)
    product<T, 2, V>(
        terms, left.data + i * left.row, left.row, left.term, right, term, to + i * to_row, to_row,
        add);
  if (i < rows)
    product<T, 1, V>(
        terms, left.data + i * left.row, left.row, left.term, right, term, to + i * to_row, to_row,
        add);
}

// to (+)= left right: rows x (vectors of columns)
template <class T>
CLONES void multiply_narrow(
    int64_t rows, int64_t vectors, int64_t terms, const Left<T>& left, const Right<T>& right,
    T* to, int64_t to_row, bool add) {
  const T* b = right.data;
  for (; vectors; vectors--, b += right.block, to += Lanes<T>::count)
    strip<T, 1>(rows, terms, left, b, right.term, to, to_row, add);
}

// The same four vectors at a time, for processors that have the registers.
template <class T>
WIDE void multiply_wide(
    int64_t rows, int64_t vectors, int64_t terms, const Left<T>& left, const Right<T>& right,
    T* to, int64_t to_row, bool add) {
  constexpr int64_t L = Lanes<T>::count;
  const T* b = right.data;
  for (; vectors >= 4; vectors -= 4, b += right.block, to += 4 * L)
    strip<T, 4>(rows, terms, left, b, right.term, to, to_row, add);
  if (vectors >= 2) {
    strip<T, 2>(rows, terms, left, b, right.term, to, to_row, add);
    vectors -= 2;
    b += 2 * L;
    to += 2 * L;
  }
  if (vectors) strip<T, 1>(rows, terms, left, b, right.term, to, to_row, add);
}

// Vectors of columns that are worked on at once.
inline int64_t width() {
#if defined(__x86_64__)
  static const bool wide =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl");
  return wide ? 4 : 1;
#else
  return 1;
#endif
}

template <class T>
void multiply(
    int64_t rows, int64_t vectors, int64_t terms, const Left<T>& left, const Right<T>& right,
    T* to, int64_t to_row, bool add) {
  const auto run = width() == 4 ? multiply_wide<T> : multiply_narrow<T>;
  run(rows, vectors, terms, left, right, to, to_row, add);
}

}  // namespace
