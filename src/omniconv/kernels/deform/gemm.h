// Products of small matrices, as a tile of a convolution needs them.

#pragma once

#include "problem.h"

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

// to (+)= left right: rows x (vectors of columns), V at a time, as many as there are registers for
template <class T, int V>
CLONES void multiply(
    int64_t rows, int64_t vectors, int64_t terms, const Left<T>& left, const Right<T>& right,
    T* to, int64_t to_row, bool add) {
  constexpr int64_t L = Lanes<T>::count;
  const T* b = right.data;
  for (; vectors >= V; vectors -= V, b += right.block, to += V * L)
    strip<T, V>(rows, terms, left, b, right.term, to, to_row, add);
  if constexpr (V == 4) {
    if (vectors >= 2) {
      strip<T, 2>(rows, terms, left, b, right.term, to, to_row, add);
      vectors -= 2;
      b += 2 * L;
      to += 2 * L;
    }
    if (vectors) strip<T, 1>(rows, terms, left, b, right.term, to, to_row, add);
  }
}

// Vectors of columns that are worked on at once.
inline int64_t width() {
#if defined(__x86_64__)
  static const bool wide = __builtin_cpu_supports("avx512f");
  return wide ? 4 : 1;
#else
  return 1;
#endif
}

template <class T>
void multiply(
    int64_t rows, int64_t vectors, int64_t terms, const Left<T>& left, const Right<T>& right,
    T* to, int64_t to_row, bool add) {
  const auto run = width() == 4 ? multiply<T, 4> : multiply<T, 1>;
  run(rows, vectors, terms, left, right, to, to_row, add);
}

}  // namespace
