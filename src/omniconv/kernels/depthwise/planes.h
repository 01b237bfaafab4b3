// Between tensors and vectors: one plane, of an image and a channel, per lane.

#pragma once

#include "../element.h"

#include "axis.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// Planes of a tensor, one per lane; null for lanes without.
template <class S>
struct Planes {
  static constexpr int64_t lanes = Lanes<Exact<std::remove_const_t<S>>>::count;
  S* lane[lanes];
  int64_t step[3];   // between neighbours along the axes
  int64_t count;     // lanes that there are; the others come after them
  bool neighbours;   // all lanes are there and side by side in memory
};

// rows of vectors of 16 bytes, turned
typedef float Quad __attribute__((vector_size(16)));

#if __has_builtin(__builtin_shufflevector)
INLINE void turn(Quad& a, Quad& b, Quad& c, Quad& d) {
  const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  c = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
  d = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}
#else
INLINE void turn(Quad& a, Quad& b, Quad& c, Quad& d) {
  Quad rows[4] = {a, b, c, d};
  Quad* out[4] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) (*out[i])[j] = rows[j][i];
}
#endif

INLINE void turn(const float* const* from, int64_t at, float* to) {
  Quad a, b, c, d;
  std::memcpy(&a, from[0] + at, sizeof a);
  std::memcpy(&b, from[1] + at, sizeof b);
  std::memcpy(&c, from[2] + at, sizeof c);
  std::memcpy(&d, from[3] + at, sizeof d);
  turn(a, b, c, d);
  std::memcpy(to, &a, sizeof a);
  std::memcpy(to + 16, &b, sizeof b);
  std::memcpy(to + 32, &c, sizeof c);
  std::memcpy(to + 48, &d, sizeof d);
}

INLINE void turn(const float* from, float* const* to, int64_t at) {
  Quad a, b, c, d;
  std::memcpy(&a, from, sizeof a);
  std::memcpy(&b, from + 16, sizeof b);
  std::memcpy(&c, from + 32, sizeof c);
  std::memcpy(&d, from + 48, sizeof d);
  turn(a, b, c, d);
  std::memcpy(to[0] + at, &a, sizeof a);
  std::memcpy(to[1] + at, &b, sizeof b);
  std::memcpy(to[2] + at, &c, sizeof c);
  std::memcpy(to[3] + at, &d, sizeof d);
}

// n places from `at` on, `step` apart, become vectors
template <class S>
CLONES void gather(
    const Planes<const S>& p, int64_t at, int64_t step, int64_t n, Value<Exact<S>>* out) {
  constexpr int64_t lanes = Planes<const S>::lanes;
  if (p.neighbours) {
    for (int64_t i = 0; i < n; i++) out[i] = read(p.lane[0] + at + i * step);
    return;
  }
  auto* to = reinterpret_cast<Exact<S>*>(out);
  int64_t i = 0;
  if constexpr (std::is_same_v<S, float>)
    if (step == 1 && p.count == lanes)
      for (; i + 4 <= n; i += 4)
        for (int64_t l = 0; l < lanes; l += 4) turn(p.lane + l, at + i, to + i * lanes + l);
  for (; i < n; i++)
    for (int64_t l = 0; l < lanes; l++)
      to[i * lanes + l] = l < p.count ? get(p.lane[l] + at + i * step) : Exact<S>(0);
}

// and back
template <class S>
CLONES void scatter(
    const Planes<S>& p, int64_t at, int64_t step, int64_t n, const Value<Exact<S>>* values) {
  constexpr int64_t lanes = Planes<S>::lanes;
  if (p.neighbours) {
    for (int64_t i = 0; i < n; i++) write(p.lane[0] + at + i * step, values[i]);
    return;
  }
  const auto* from = reinterpret_cast<const Exact<S>*>(values);
  int64_t i = 0;
  if constexpr (std::is_same_v<S, float>)
    if (step == 1 && p.count == lanes)
      for (; i + 4 <= n; i += 4)
        for (int64_t l = 0; l < lanes; l += 4) turn(from + i * lanes + l, p.lane + l, at + i);
  for (; i < n; i++)
    for (int64_t l = 0; l < p.count; l++) put(p.lane[l] + at + i * step, from[i * lanes + l]);
}

// A box of places as vectors; places outside of the tensor are 0.
struct Box {
  Range range[3];

  int64_t step(int axis) const {
    return axis == 2 ? 1 : range[axis + 1].size() * step(axis + 1);
  }
  int64_t size() const { return range[0].size() * step(0); }
  int64_t at(int64_t z, int64_t y, int64_t x) const {
    return ((z - range[0].first) * range[1].size() + y - range[1].first) * range[2].size() + x -
           range[2].first;
  }
};

template <class S>
void fill(const Planes<const S>& p, const int64_t* size, const Box& box, Value<Exact<S>>* out) {
  const Range wide = box.range[2], in = wide.both({0, size[2]});
  if (in.size() == wide.size() && wide.size() == size[2] && p.step[1] == size[2] * p.step[2]) {
    const Range planes = box.range[0], rows = box.range[1];
    if (planes.first >= 0 && planes.last <= size[0] && rows.first >= 0 && rows.last <= size[1]) {
      // rows follow each other in both
      for (int64_t z = box.range[0].first; z < box.range[0].last; z++)
        gather(p, z * p.step[0] + rows.first * p.step[1], p.step[2], rows.size() * size[2],
               out + box.at(z, rows.first, 0));
      return;
    }
  }
  for (int64_t z = box.range[0].first; z < box.range[0].last; z++)
    for (int64_t y = box.range[1].first; y < box.range[1].last; y++) {
      Value<Exact<S>>* row = out + box.at(z, y, wide.first);
      const bool inside = z >= 0 && z < size[0] && y >= 0 && y < size[1] && in.size() > 0;
      const Range filled = inside ? in : Range{wide.first, wide.first};
      std::fill(row, row + filled.first - wide.first, Value<Exact<S>>{});
      gather(p, z * p.step[0] + y * p.step[1] + filled.first * p.step[2], p.step[2],
             filled.size(), row + filled.first - wide.first);
      std::fill(row + filled.last - wide.first, row + wide.size(), Value<Exact<S>>{});
    }
}

template <class S>
void empty(const Planes<S>& p, const int64_t* size, const Box& box, const Value<Exact<S>>* values) {
  const bool whole = box.range[2].size() == size[2] && p.step[1] == size[2] * p.step[2];
  for (int64_t z = box.range[0].first; z < box.range[0].last; z++) {
    const Range rows = box.range[1], wide = box.range[2];
    const int64_t n = whole ? rows.size() * wide.size() : wide.size();
    for (int64_t y = rows.first; y < (whole ? rows.first + 1 : rows.last); y++)
      scatter(p, z * p.step[0] + y * p.step[1] + wide.first * p.step[2], p.step[2], n,
              values + box.at(z, y, wide.first));
  }
}

// Fetch the part'th of `parts` of a box's planes into the caches.
template <bool WRITE, class S>
INLINE void fetch(
    const Planes<S>& p, const int64_t* size, const Box& box, int64_t part, int64_t parts) {
  if (p.count == 0) return;
  const Range z = box.range[0].both({0, size[0]}), y = box.range[1].both({0, size[1]});
  const int64_t first = z.first * size[1] + y.first, last = (z.last - 1) * size[1] + y.last;
  const int64_t low = (first + (last - first) * part / parts) * p.step[1];
  const int64_t high = (first + (last - first) * (part + 1) / parts) * p.step[1];
  const int64_t line = 64 / int64_t(sizeof(S));
  if (p.step[2] == 1)
    for (int64_t l = 0; l < p.count; l++)
      for (int64_t at = low; at < high; at += line) __builtin_prefetch(p.lane[l] + at, WRITE, 2);
  else if (p.neighbours)
    for (int64_t at = low; at < high; at += p.step[2])
      __builtin_prefetch(p.lane[0] + at, WRITE, 2);
}

}  // namespace
