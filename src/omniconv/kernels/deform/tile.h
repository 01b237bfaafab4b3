// What forward and backward have in common: a call's memory, and a tile of output positions.

#pragma once

#include "gemm.h"
#include "sample.h"

#include <new>
#include <vector>

namespace {

constexpr int64_t MEGABYTE = 1 << 20;

// The tensors' memory, and how x lies in it; what an operation does not have is null.
template <class T>
struct Data {
  const T *x, *offset, *mask, *weight, *bias, *grad;
  int64_t sample_step, channel_step, pixel_step;
  T *y, *by_x, *by_offset, *by_mask, *by_weight;

  const T* offsets(const Problem& s, int64_t b, int64_t group, int64_t q) const {
    return offset + ((b * s.offset_groups + group) * s.taps + q) * s.dim * s.points;
  }
  const T* masks(const Problem& s, int64_t b, int64_t group, int64_t q) const {
    return mask + ((b * s.offset_groups + group) * s.taps + q) * s.points;
  }
};

// Scratch of one thread, in pieces that start at multiples of 64 bytes.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : memory(static_cast<char*>(::operator new(bytes, std::align_val_t{64}))), next(memory) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(memory, std::align_val_t{64}); }

  static int64_t size(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  template <class U>
  U* take(int64_t count) {
    U* found = reinterpret_cast<U*>(next);
    next += size(count * sizeof(U));
    return found;
  }

 private:
  char *memory, *next;
};

// The tile's points, and room for the places of `count` taps or groups.
template <class T, int D>
struct Tile {
  int64_t first, n;
  T* base;
  Places<T> room;

  static int64_t bytes(int64_t count) {
    return Scratch::size(D * POINTS * sizeof(T)) +
           Scratch::size(count * POINTS * sizeof(Int<T>)) +
           Scratch::size((count * POINTS << D) * sizeof(T));
  }
  Tile(Scratch& scratch, int64_t count)
      : base(scratch.take<T>(D * POINTS)),
        room{scratch.take<Int<T>>(count * POINTS), scratch.take<T>(count * POINTS << D)} {}

  void start(const Problem& s, int64_t tile) {
    first = tile * POINTS;
    n = std::min(POINTS, s.points - first);
    for (int64_t i = 0; i < POINTS; i++) {
      int64_t point = first + std::min(i, n - 1);
      for (int64_t a = D - 1; a >= 0; a--) {
        base[a * POINTS + i] = T(point % s.out[a] * s.stride[a] - s.low[a]);
        point /= s.out[a];
      }
    }
  }
  Places<T> places(int64_t i) const {
    return {room.pixel + i * POINTS, room.weight + (i * POINTS << D)};
  }
};

// How far each tap lies from the first: [tap][axis].
template <class T>
std::vector<T> shifts(const Problem& s) {
  std::vector<T> found(s.taps * s.dim);
  for (int64_t q = 0; q < s.taps; q++)
    for (int64_t a = s.dim - 1, rest = q; a >= 0; rest /= s.kernel[a--])
      found[q * s.dim + a] = T(rest % s.kernel[a] * s.dilation[a]);
  return found;
}

// Weights of a depthwise convolution: [outputs of a channel][tap][channel].
template <class T>
std::vector<T> factors(const Problem& s, const T* weight) {
  const int64_t each = s.out_group();
  std::vector<T> found(each * s.taps * s.padded + Lanes<T>::count);
  for (int64_t o = 0; o < s.outputs; o++)
    for (int64_t q = 0; q < s.taps; q++)
      found[(o % each * s.taps + q) * s.padded + o / each] = weight[o * s.taps + q];
  return found;
}

// Grain for torch's loops: a thread is worth waking for 40,000 cycles.
inline int64_t grain(int64_t cycles) { return 40000 / (cycles + 1) + 1; }

inline int64_t tile_cycles(const Problem& s) {
  const int64_t product = s.depthwise ? 0 : s.out_group() * s.channels / 24;
  return std::min(POINTS, s.points) * s.taps * (s.channels / 2 + 5 * s.offset_groups + product);
}

}  // namespace
