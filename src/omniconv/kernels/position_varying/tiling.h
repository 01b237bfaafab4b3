// The convolution's shape, and the boxes and lanes that its positions are divided into.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t TASKS = 8;  // fewer are split, for the threads

// Tap q of position p reads the input at (p + shift(q)) stride + phase(q) - low.
struct Axis {
  int64_t in, taps, out, stride, dilation, low;

  int64_t shift(int64_t q) const { return q * dilation / stride; }
  int64_t phase(int64_t q) const { return q * dilation % stride; }
  int64_t reach() const { return shift(taps - 1); }
  // the cells of `stride` inputs, counted as positions are, that the image takes part in
  int64_t first_cell() const { return low / stride; }
  int64_t cells() const { return (in - 1 + low) / stride - first_cell() + 1; }
};

// Tensors (batch, channels, *space) and (batch or 1, groups, *taps, *space), with three axes of
// space each; those that there are not come first and have one element.
template <class S>
struct Image {
  S* data;
  int64_t batch, channel, space[3];
};

template <class S>
struct Weights {
  S* data;
  int64_t batch, group, tap[3], space[3];
};

struct Shape {
  Axis axis[3];
  int64_t batch, channels, groups, sets;  // sets: the weights' batch
  bool softmax;

  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  int64_t shared() const { return channels / groups * (sets == 1 ? batch : 1); }
};

struct Tap {
  int64_t at[3];
};

inline std::vector<Tap> all_taps(const Shape& s) {
  std::vector<Tap> taps;
  for (int64_t i = 0; i < s.axis[0].taps; i++)
    for (int64_t j = 0; j < s.axis[1].taps; j++)
      for (int64_t k = 0; k < s.axis[2].taps; k++) taps.push_back({{i, j, k}});
  return taps;
}

// Boxes of at most `size` that cover `whole`; each is read with `reach` more along every axis.
struct Tiling {
  int64_t whole[3], size[3], reach[3], count[3];

  int64_t tiles() const { return count[0] * count[1] * count[2]; }
  int64_t extended(int a) const { return size[a] + reach[a]; }

  void split(int a, int64_t most) {
    count[a] = (whole[a] + most - 1) / most;
    size[a] = (whole[a] + count[a] - 1) / count[a];
    count[a] = (whole[a] + size[a] - 1) / size[a];
  }

  Tiling(const int64_t (&whole_)[3], const int64_t (&reach_)[3], int64_t budget, int64_t tasks) {
    std::copy(whole_, whole_ + 3, whole);
    std::copy(reach_, reach_ + 3, reach);
    const auto within = [](int64_t value, int64_t most) {
      return std::min(std::max<int64_t>(value, 1), most);
    };
    split(2, within(std::max<int64_t>(budget, 64), whole[2]));
    split(1, within(budget / extended(2), whole[1]));
    split(0, within(size[1] < whole[1] ? 1 : budget / (size[1] * extended(2)), whole[0]));
    while (tiles() * tasks < TASKS && (size[0] > 1 || size[1] > 4))
      size[0] > 1 ? split(0, (size[0] + 1) / 2) : split(1, (size[1] + 1) / 2);
  }

  void place(int64_t tile, int64_t* start, int64_t* extent) const {
    for (int a = 2; a >= 0; tile /= count[a--]) {
      start[a] = tile % count[a] * size[a];
      extent[a] = std::min(size[a], whole[a] - start[a]);
    }
  }
};

// The lanes of a box: plane by plane, one run of all its rows with the gaps between them that the
// values have, or a run for each row, whichever takes fewer vectors.
struct Lay {
  int64_t line, runs, vectors, plane, values_line, values_plane;

  Lay(const Tiling& tiling, int64_t lanes) {
    values_line = tiling.extended(2);
    values_plane = values_line * tiling.extended(1);
    const auto vectors_of = [&](int64_t count) { return (count + lanes - 1) / lanes; };
    const int64_t whole = vectors_of((tiling.size[1] - 1) * values_line + tiling.size[2]);
    const int64_t each = vectors_of(tiling.size[2]);
    const bool flat = whole <= tiling.size[1] * each;
    line = flat ? values_line : each * lanes;
    runs = flat ? 1 : tiling.size[1];
    vectors = flat ? whole : each;
    plane = flat ? whole * lanes : runs * line;
  }
};

}  // namespace
