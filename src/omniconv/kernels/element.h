// Numbers as they lie in memory, and the vectors that they are computed as: bfloat16 in float.

#pragma once

#include "vector.h"

#include <cstdint>
#include <cstring>

namespace {

struct Bfloat {
  uint16_t bits;
};

template <class S>
struct ExactOf {
  using type = S;
};
template <>
struct ExactOf<Bfloat> {
  using type = float;
};
template <class S>
using Exact = typename ExactOf<S>::type;

template <class T>
INLINE Value<T> read(const T* from) {
  Value<T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
INLINE void write(T* to, const Value<T>& value) {
  std::memcpy(to, &value, sizeof value);
}

typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));

INLINE Value<float> read(const Bfloat* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Value<float> value;
  std::memcpy(&value, &words, sizeof value);
  return value;
}

// rounded to nearest, ties to even; NaN stays NaN
INLINE void write(Bfloat* to, const Value<float>& value) {
  Words words;
  std::memcpy(&words, &value, sizeof words);
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Words kept = value != value ? (words >> 16) | 64 : rounded;
  const Halves halves = __builtin_convertvector(kept, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

INLINE float get(const float* from) { return *from; }
INLINE double get(const double* from) { return *from; }
INLINE float get(const Bfloat* from) {
  const uint32_t word = uint32_t(from->bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

INLINE void put(float* to, float value) { *to = value; }
INLINE void put(double* to, double value) { *to = value; }
INLINE void put(Bfloat* to, float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  const uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  to->bits = uint16_t(value != value ? (word >> 16) | 64 : rounded);
}

}  // namespace
