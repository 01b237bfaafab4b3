// What the passes share: a box's tensors, copied to and from the memory of the thread at work.

#pragma once

#include "box.h"
#include "loops.h"
#include "tiling.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

namespace {

constexpr int64_t CHANNELS = 16;  // worked on at a time

// Memory of one thread.
template <class T>
struct Memory {
  T *values, *weight, *spare, *result;
};

template <class S>
struct Work {
  using T = Exact<S>;
  static constexpr int64_t L = Lanes<T>::count;

  const Shape& s;
  Weights<S> weights;
  Tiling tiling;
  Lay lay;
  std::vector<Tap> taps;
  int64_t phases[3];  // remainders modulo the stride that values are packed for
  int64_t values_size, lanes, packed;
  int64_t spare = 0;  // numbers of memory more, for a pass

  Work(const Shape& shape, const Weights<S>& weights_, const Tiling& tiling_, bool by_phase)
      : s(shape), weights(weights_), tiling(tiling_), lay(tiling_, L), taps(all_taps(shape)) {
    for (int a = 0; a < 3; a++)
      phases[a] = by_phase && s.axis[a].taps > 1 ? s.axis[a].stride : 1;
    values_size = tiling.extended(0) * lay.values_plane;
    lanes = tiling.size[0] * lay.plane;
    packed = std::min(CHANNELS, s.shared());
  }

  int64_t tasks() const { return s.sets * s.groups * tiling.tiles(); }
  int64_t channel_values() const { return phases[0] * phases[1] * phases[2] * values_size; }

  // Addresses of the channels from `first` on that share weights.
  template <class P>
  int64_t channels(
      int64_t set, int64_t group, int64_t first, const Image<P>& image, P** found) const {
    const int64_t each = s.channels / s.groups, count = std::min(packed, s.shared() - first);
    for (int64_t m = 0; m < count; m++) {
      const int64_t b = s.sets == 1 ? (first + m) / each : set;
      found[m] = image.data + b * image.batch + (group * each + (first + m) % each) * image.channel;
    }
    return count;
  }

  // Addresses of the weights of all taps.
  std::vector<S*> addresses(int64_t set, int64_t group) const {
    std::vector<S*> found;
    for (const Tap& tap : taps) {
      found.push_back(weights.data + set * weights.batch + group * weights.group);
      for (int a = 0; a < 3; a++) found.back() += tap.at[a] * weights.tap[a];
    }
    return found;
  }

  // A box of positions, or of values, as it lies in a tensor.
  Box box(const int64_t* start, const int64_t* extent, const int64_t* stride) const {
    Box b;
    for (int a = 0; a < 3; a++) {
      b.start[a] = start[a];
      b.extent[a] = extent[a];
      b.step[a] = 1;
      b.stride[a] = stride[a];
      b.limit[a] = s.axis[a].out;
    }
    b.plane = lay.plane;
    b.line = lay.line;
    return b;
  }

  void pack_weights(
      int64_t set, int64_t group, const int64_t* start, const int64_t* extent, T* to) const {
    const std::vector<S*> from = addresses(set, group);
    Box b = box(start, extent, weights.space);
    b.settle();
    pack<S>(from.data(), int64_t(from.size()), int64_t(from.size()), b, to, lanes);
    if (s.softmax) normalise<T>(to, lanes, int64_t(taps.size()), lanes);
  }

  // The values that the taps of a box read, by phase.
  template <class P>
  void pack_input(
      P* const* from, int64_t count, const int64_t* start, const int64_t* extent,
      const Image<P>& x, T* to) const {
    Box b = box(start, extent, x.space);
    b.plane = lay.values_plane;
    b.line = lay.values_line;
    for (int a = 0; a < 3; a++) {
      b.extent[a] += tiling.reach[a];
      b.step[a] = s.axis[a].stride;
      b.limit[a] = s.axis[a].in;
    }
    for (int64_t i = 0; i < phases[0]; i++)
      for (int64_t j = 0; j < phases[1]; j++)
        for (int64_t k = 0; k < phases[2]; k++, to += values_size) {
          const int64_t phase[3] = {i, j, k};
          for (int a = 0; a < 3; a++)
            b.start[a] = start[a] * s.axis[a].stride + phase[a] - s.axis[a].low;
          b.settle();
          pack<S>(from, count, count, b, to, channel_values());
        }
  }

  std::vector<int64_t> offsets() const {
    std::vector<int64_t> found;
    for (const Tap& tap : taps) {
      int64_t phase = 0;
      for (int a = 0; a < 3; a++)
        phase = phase * phases[a] + (phases[a] > 1 ? s.axis[a].phase(tap.at[a]) : 0);
      found.push_back(
          phase * values_size + s.axis[0].shift(tap.at[0]) * lay.values_plane +
          s.axis[1].shift(tap.at[1]) * lay.values_line + s.axis[2].shift(tap.at[2]));
    }
    return found;
  }

  // Where packed weights lie.
  std::vector<int64_t> places() const {
    std::vector<int64_t> found;
    for (size_t q = 0; q < taps.size(); q++) found.push_back(int64_t(q) * lanes);
    return found;
  }

  Job<T> job(
      const Memory<T>& memory, T* weight, const std::vector<int64_t>& offset,
      const std::vector<int64_t>& place) const {
    Job<T> job;
    job.values = memory.values;
    job.weight = weight;
    job.result = memory.result;
    job.channel = channel_values();
    job.lane = lanes;
    job.offset = offset.data();
    job.place = place.data();
    job.taps = int64_t(offset.size());
    job.runs = lay.runs;
    job.vectors = lay.vectors;
    job.values_run = lay.values_line;
    job.weight_run = job.run = lay.line;
    return job;
  }

  template <class Loop>
  void by_plane(Job<T> job, int64_t planes, int64_t weight_plane, Loop loop) const {
    for (int64_t i = 0; i < planes; i++) {
      loop(job);
      job.values += lay.values_plane;
      job.weight += weight_plane;
      job.result += lay.plane;
    }
  }

  // A function of (memory, set, group, start, extent) for every box, on all threads.
  template <class Task>
  void run(const Task& task) const {
    const int64_t values = packed * channel_values() + 4 * L, weight = s.taps() * lanes;
    const int64_t result = packed * lanes, each = tiling.tiles();
    const int64_t whole = values + weight + spare + result + 4 * L;
    const int64_t cost = weight * (s.shared() + 4) / 16;
    const int64_t grain = 20000 / (cost + 1) + 1;
    torch::stable::parallel_for(0, tasks(), grain, [&](int64_t first, int64_t last) {
      constexpr std::align_val_t line{64};
      T* all = static_cast<T*>(::operator new(whole * sizeof(T), line));
      auto take = [&, free = all](int64_t count) mutable {
        T* found = free;
        free += (count + L - 1) / L * L;
        return found;
      };
      Memory<T> memory;
      memory.values = take(values);
      memory.weight = take(weight);
      memory.spare = take(spare);
      memory.result = take(result);
      for (int64_t i = first; i < last; i++) {
        int64_t start[3], extent[3];
        tiling.place(i % each, start, extent);
        task(memory, i / each / s.groups, i / each % s.groups, start, extent);
      }
      ::operator delete(all, line);
    });
  }
};

}  // namespace
