// The sums themselves, over packed memory: every position of a box has a lane.

#pragma once

#include "../element.h"
#include "../exponential.h"

#include <algorithm>
#include <cstdint>

namespace {

#define UNROLL _Pragma("GCC unroll 16")

// `runs` runs of `vectors` vectors of positions. A tap reads the values `offset` further on.
template <class T>
struct Job {
  const T* values;  // of every channel
  T* weight;        // of every tap
  T* result;        // apply: of every channel; correlate: the channels' factors
  int64_t channel, lane;  // from one channel's values and results to the next one's
  const int64_t *offset, *place;  // of a tap's values and of its weights
  int64_t channels, taps, runs, vectors;
  int64_t values_run, weight_run, run;  // from one run to the next
};

template <class T, int C, int N>
INLINE void apply_tile(const Job<T>& job, const T* values, const T* weight, T* result) {
  constexpr int64_t L = Lanes<T>::count;
  Value<T> sum[C][N] = {};
  for (int64_t q = 0; q < job.taps; q++) {
    const T* from = values + job.offset[q];
    Value<T> factor[N];
UNROLL
    for (int n = 0; n < N; n++) factor[n] = read(weight + job.place[q] + n * L);
UNROLL
    for (int c = 0; c < C; c++)
UNROLL
      for (int n = 0; n < N; n++) sum[c][n] += factor[n] * read(from + c * job.channel + n * L);
  }
UNROLL
  for (int c = 0; c < C; c++)
UNROLL
    for (int n = 0; n < N; n++) write(result + c * job.lane + n * L, sum[c][n]);
}

template <class T, int N>
INLINE void apply_column(const Job<T>& job, int64_t run, int64_t vector) {
  const int64_t at = vector * Lanes<T>::count;
  const T* values = job.values + run * job.values_run + at;
  const T* weight = job.weight + run * job.weight_run + at;
  T* result = job.result + run * job.run + at;
  int64_t c = 0;
  for (; c + 8 <= job.channels; c += 8)
    apply_tile<T, 8, N>(job, values + c * job.channel, weight, result + c * job.lane);
  for (; c + 4 <= job.channels; c += 4)
    apply_tile<T, 4, N>(job, values + c * job.channel, weight, result + c * job.lane);
  for (; c < job.channels; c++)
    apply_tile<T, 1, N>(job, values + c * job.channel, weight, result + c * job.lane);
}

// result[c][p] = sum over taps of weight[q][p] values[c][p + offset[q]]
template <class T>
CLONES void apply(const Job<T>& job) {
  for (int64_t run = 0; run < job.runs; run++) {
    int64_t vector = 0;
    for (; vector + 2 <= job.vectors; vector += 2) apply_column<T, 2>(job, run, vector);
    if (vector < job.vectors) apply_column<T, 1>(job, run, vector);
  }
}

template <class T, int Q, int N>
INLINE void correlate_tile(
    const Job<T>& job, const T* values, const T* factors, T* weight, int64_t tap) {
  constexpr int64_t L = Lanes<T>::count;
  Value<T> sum[Q][N];
UNROLL
  for (int q = 0; q < Q; q++)
UNROLL
    for (int n = 0; n < N; n++) sum[q][n] = read(weight + job.place[tap + q] + n * L);
  for (int64_t c = 0; c < job.channels; c++) {
    Value<T> factor[N];
UNROLL
    for (int n = 0; n < N; n++) factor[n] = read(factors + c * job.lane + n * L);
UNROLL
    for (int q = 0; q < Q; q++)
UNROLL
      for (int n = 0; n < N; n++)
        sum[q][n] += factor[n] * read(values + c * job.channel + job.offset[tap + q] + n * L);
  }
UNROLL
  for (int q = 0; q < Q; q++)
UNROLL
    for (int n = 0; n < N; n++) write(weight + job.place[tap + q] + n * L, sum[q][n]);
}

template <class T, int N>
INLINE void correlate_column(const Job<T>& job, int64_t run, int64_t vector) {
  const int64_t at = vector * Lanes<T>::count;
  const T* values = job.values + run * job.values_run + at;
  const T* factors = job.result + run * job.run + at;
  T* weight = job.weight + run * job.weight_run + at;
  int64_t q = 0;
  for (; q + 4 <= job.taps; q += 4)
    correlate_tile<T, 4, N>(job, values, factors, weight, q);
  for (; q < job.taps; q++)
    correlate_tile<T, 1, N>(job, values, factors, weight, q);
}

// weight[q][p] += sum over channels of result[c][p] values[c][p + offset[q]]
template <class T>
CLONES void correlate(const Job<T>& job) {
  for (int64_t run = 0; run < job.runs; run++) {
    int64_t vector = 0;
    for (; vector + 2 <= job.vectors; vector += 2) correlate_column<T, 2>(job, run, vector);
    if (vector < job.vectors) correlate_column<T, 1>(job, run, vector);
  }
}

// exp(x) for x <= 0 or NaN
template <class T>
INLINE Value<T> decay(const Value<T>& x) {
  constexpr T least = sizeof(T) == 4 ? T(-87) : T(-708);
  Value<T> power = x < least ? least + Value<T>{} : x;
  exponential(power);
  return x < least ? Value<T>{} : power;
}

// The weights become their softmax over the taps.
template <class T>
CLONES void normalise(T* weight, int64_t tap, int64_t taps, int64_t count) {
  for (int64_t p = 0; p < count; p += Lanes<T>::count) {
    Value<T> most = read(weight + p), sum{};
    for (int64_t q = 1; q < taps; q++) {
      const Value<T> value = read(weight + q * tap + p);
      most = value > most ? value : most;  // of NaN either: the sum shows it
    }
    for (int64_t q = 0; q < taps; q++) {
      const Value<T> power = decay<T>(read(weight + q * tap + p) - most);
      write(weight + q * tap + p, power);
      sum += power;
    }
    sum = T(1) / sum;
    for (int64_t q = 0; q < taps; q++)
      write(weight + q * tap + p, Value<T>(read(weight + q * tap + p) * sum));
  }
}

// The gradient for normalised weights becomes the one for the weights.
template <class T>
CLONES void pull_back(const T* weight, T* gradient, int64_t tap, int64_t taps, int64_t count) {
  for (int64_t p = 0; p < count; p += Lanes<T>::count) {
    Value<T> mean{};
    for (int64_t q = 0; q < taps; q++)
      mean += read(weight + q * tap + p) * read(gradient + q * tap + p);
    for (int64_t q = 0; q < taps; q++) {
      const Value<T> moved = read(gradient + q * tap + p) - mean;
      write(gradient + q * tap + p, Value<T>(read(weight + q * tap + p) * moved));
    }
  }
}

}  // namespace
