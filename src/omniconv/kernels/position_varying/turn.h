// Squares of four by four numbers, turned: between interleaved tensors and lines of each.

#pragma once

#include "../element.h"

#include <cstring>

namespace {

template <class T>
struct FourOf;
template <>
struct FourOf<float> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct FourOf<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <class T>
using Four = typename FourOf<T>::type;

template <class S>
INLINE Four<Exact<S>> read_four(const S* from) {
  return Four<Exact<S>>{get(from), get(from + 1), get(from + 2), get(from + 3)};
}

template <class T, class V>
INLINE void write_four(T* to, const V& value) {
  std::memcpy(to, &value, sizeof value);
}

INLINE void write_four(Bfloat* to, const Four<float>& value) {
  for (int i = 0; i < 4; i++) put(to + i, value[i]);
}

// The transposed matrix of four rows.
template <class V>
INLINE void turn(V (&rows)[4]) {
#if __has_builtin(__builtin_shufflevector)
  const V a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const V b = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const V c = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const V d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  rows[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  rows[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  rows[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#else
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < i; j++) {
      const auto kept = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = kept;
    }
#endif
}

}  // namespace
