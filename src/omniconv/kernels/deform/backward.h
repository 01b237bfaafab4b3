// The gradients. A job works through a part of a sample's tiles, or all of them, and has a gradient
// for x and one for the weight of its own; they are added in the order of the jobs. How many there
// are depends on the sizes alone, and so no result depends on the number of threads.

#pragma once

#include "tile.h"

#include <torch/csrc/stable/ops.h>

namespace {

// to[c] += the sum over points of left[p][c] right[p][c]
template <class T>
CLONES void add_products(
    int64_t channels, int64_t n, const T* left, const T* right, int64_t row, T* to) {
  constexpr int64_t L = Lanes<T>::count;
  for (int64_t c = 0; c < channels; c += L) {
    Value<T> sum = read(to + c);
    for (int64_t p = 0; p < n; p++) sum += read(left + p * row + c) * read(right + p * row + c);
    write(to + c, sum);
  }
}

// to[p][c] (+)= left[p][c] factor[c]
template <class T>
CLONES void scale(
    int64_t channels, int64_t n, const T* left, const T* factor, int64_t row, T* to, bool add) {
  constexpr int64_t L = Lanes<T>::count;
  for (int64_t p = 0; p < n; p++)
    for (int64_t c = 0; c < channels; c += L) {
      const Value<T> found = read(left + p * row + c) * read(factor + c);
      write(to + p * row + c, add ? found + read(to + p * row + c) : found);
    }
}

// to += from
template <class T>
CLONES void add_to(int64_t count, const T* from, T* to) {
  constexpr int64_t L = Lanes<T>::count;
  int64_t i = 0;
  for (; i + L <= count; i += L) write(to + i, read(to + i) + read(from + i));
  for (; i < count; i++) to[i] += from[i];
}

// Samples that are worked on together, parts of each, numbers of a weight's gradient.
template <class T>
struct Jobs {
  int64_t wave, parts, weights;

  Jobs(const Problem& s, bool by_x, bool by_weight) {
    const int64_t bytes = s.numbers<T>() * sizeof(T);
    wave = std::clamp<int64_t>(8 * MEGABYTE / bytes, 1, std::clamp<int64_t>(s.batch, 1, 16));
    parts = std::clamp<int64_t>(8 / wave, 1, std::max<int64_t>(s.tiles(), 1));
    if (by_x) parts = std::min(parts, std::max<int64_t>(2, 128 * MEGABYTE / bytes));
    weights = 0;
    if (by_weight) {
      weights = s.depthwise ? s.out_group() * s.taps * s.padded
                            : s.outputs * s.taps * rounded<T>(s.in_group());
      const int64_t most = 256 * MEGABYTE / (weights * int64_t(sizeof(T)) + 1) + 1;
      wave = std::min(wave, most);
      parts = std::min(parts, most / wave);
    }
  }
};

template <class T, int D>
class Backward {
 public:
  Backward(const Problem& s, const Data<T>& d, const Jobs<T>& jobs)
      : s(s),
        d(d),
        jobs(jobs),
        shift(shifts<T>(s)),
        dense(d.weight && !s.depthwise),
        samples(d.by_x || d.by_offset || d.by_mask),
        apart(!d.weight || (!dense && s.shared % L == 0)),
        block(width() * L),
        row(s.padded + L),
        each(d.weight && !dense ? s.out_group() : 1) {
    if (!dense && d.weight) packed = factors(s, d.weight);
    if (dense && samples) pack();
  }

  // `kept` has room for the samples of a wave, `by_x` for as many of each part, `by_weight` for the
  // weight's gradient of each job.
  void run(T* kept, T* by_x, T* by_weight) const {
    const int64_t strips = Strip::all(s), numbers = s.numbers<T>();
    std::fill(by_weight, by_weight + jobs.wave * jobs.parts * jobs.weights, T(0));
    for (int64_t b = 0; b < s.batch; b += jobs.wave) {
      const int64_t count = std::min(jobs.wave, s.batch - b);
      torch::stable::parallel_for(
          0, count * strips, grain(16 * s.pixels), [&](int64_t i, int64_t last) {
            for (; i < last; i++)
              keep(s, d.x + (b + i / strips) * d.sample_step, d.channel_step, d.pixel_step,
                   Strip(s, i % strips), kept + i / strips * numbers);
          });
      const int64_t each_job = s.tiles() * tile_cycles(s) / jobs.parts;
      torch::stable::parallel_for(
          0, count * jobs.parts, grain(2 * each_job), [&](int64_t j, int64_t last) {
            for (; j < last; j++)
              job(b + j / jobs.parts, j % jobs.parts, kept + j / jobs.parts * numbers,
                  d.by_x ? by_x + j * numbers : nullptr, by_weight + j * jobs.weights);
          });
      if (d.by_x)
        torch::stable::parallel_for(
            0, count * strips, grain(16 * s.pixels), [&](int64_t i, int64_t last) {
              for (; i < last; i++)
                give(b + i / strips, Strip(s, i % strips),
                     by_x + i / strips * jobs.parts * numbers);
            });
    }
    if (d.by_weight)
      torch::stable::parallel_for(
          0, s.outputs, grain(jobs.weights / s.outputs), [&](int64_t o, int64_t last) {
            for (; o < last; o++) give_weight(o, by_weight);
          });
  }

 private:
  static constexpr int64_t L = Lanes<T>::count;

  // [tap][group][block of channels][output][channel]
  void pack() {
    const int64_t in = s.in_group(), out = s.out_group(), blocks = (in + block - 1) / block;
    packed.resize(s.taps * s.groups * blocks * out * block);
    for (int64_t o = 0; o < s.outputs; o++)
      for (int64_t c = 0; c < in; c++)
        for (int64_t q = 0; q < s.taps; q++)
          packed[(((q * s.groups + o / out) * blocks + c / block) * out + o % out) * block +
                 c % block] = d.weight[(o * in + c) * s.taps + q];
  }

  void job(int64_t b, int64_t part, const T* x, T* by_x, T* by_weight) const {
    if (d.by_x) std::fill(by_x, by_x + s.numbers<T>(), T(0));
    const int64_t depth = dense ? s.outputs * POINTS : each * POINTS * row;
    Scratch scratch(
        Tile<T, D>::bytes(s.offset_groups) + Scratch::size(depth * sizeof(T)) +
        Scratch::size(POINTS * row * sizeof(T)));
    Tile<T, D> tile(scratch, s.offset_groups);
    T* grad = scratch.template take<T>(depth);
    T* columns = scratch.template take<T>(POINTS * row);
    const int64_t tiles = s.tiles();
    for (int64_t t = part * tiles / jobs.parts; t < (part + 1) * tiles / jobs.parts; t++) {
      tile.start(s, t);
      take_gradient(tile, b, grad);
      if (apart)
        for (int64_t g = 0; g < s.offset_groups; g++)
          for (int64_t q = 0; q < s.taps; q++)
            tap(tile, b, q, g, g + 1, x, grad, columns, by_x, by_weight);
      else
        for (int64_t q = 0; q < s.taps; q++)
          tap(tile, b, q, 0, s.offset_groups, x, grad, columns, by_x, by_weight);
    }
  }

  // a tap of some offset groups
  void tap(
      const Tile<T, D>& tile, int64_t b, int64_t q, int64_t group, int64_t end, const T* x,
      const T* grad, T* columns, T* by_x, T* by_weight) const {
    for (int64_t g = group; g < end; g++) {
      const int64_t at = ((b * s.offset_groups + g) * s.taps + q) * s.points;
      locate<T, D>(
          s, tile.base, shift.data() + q * D, d.offset + at * D + tile.first,
          d.mask ? d.mask + at + tile.first : nullptr, tile.n, tile.places(g));
      if (d.by_weight)
        gather<T, 1 << D>(
            s, x + s.start(g), tile.places(g), tile.n, columns + g * s.shared, row);
    }
    const int64_t c = group * s.shared, channels = (end - group) * s.shared;
    if (d.by_weight && dense) add_to_weight(tile, q, grad, columns, by_weight);
    if (d.by_weight && !dense)
      for (int64_t j = 0; j < each; j++)
        add_products(
            channels, tile.n, grad + j * POINTS * row + c, columns + c, row,
            by_weight + (j * s.taps + q) * s.padded + c);
    if (!samples) return;
    if (dense) to_columns(tile, q, grad, columns);
    if (d.weight && !dense)
      for (int64_t j = 0; j < each; j++)
        scale(
            channels, tile.n, grad + j * POINTS * row + c,
            packed.data() + (j * s.taps + q) * s.padded + c, row, columns + c, j > 0);
    for (int64_t g = group; g < end; g++) {
      const int64_t at = ((b * s.offset_groups + g) * s.taps + q) * s.points;
      spread<T, D>(
          s,
          {tile.base, shift.data() + q * D, d.offset + at * D + tile.first,
           d.mask ? d.mask + at + tile.first : nullptr, x + s.start(g),
           (d.weight ? columns : grad) + g * s.shared, row, d.by_x ? by_x + s.start(g) : nullptr,
           d.by_offset ? d.by_offset + at * D + tile.first : nullptr,
           d.by_mask ? d.by_mask + at + tile.first : nullptr},
          tile.places(g), tile.n);
    }
  }

  // dense: [output][point]; else [output of a channel][point][channel]
  void take_gradient(const Tile<T, D>& tile, int64_t b, T* grad) const {
    const int64_t outputs = dense ? s.outputs : s.channels * each;
    const T* from = d.grad + b * outputs * s.points + tile.first;
    for (int64_t o = 0; o < outputs; o++)
      for (int64_t i = 0; i < POINTS; i += L)
        __builtin_prefetch(from + o * s.points + POINTS + i);  // the next tile's
    if (dense)
      for (int64_t o = 0; o < s.outputs; o++)
        std::copy(from + o * s.points, from + o * s.points + tile.n, grad + o * POINTS);
    else
      for (int64_t j = 0; j < each; j++)
        transpose(
            from + j * s.points, each * s.points, grad + j * POINTS * row, row, s.channels, tile.n);
  }

  void add_to_weight(
      const Tile<T, D>& tile, int64_t q, const T* grad, const T* columns, T* to) const {
    const int64_t in = s.in_group(), out = s.out_group(), padded = rounded<T>(in);
    for (int64_t g = 0; g < s.groups; g++)
      multiply<T>(
          out, padded / L, tile.n, {grad + g * out * POINTS, POINTS, 1},
          {columns + g * in, block, row}, to + (g * out * s.taps + q) * padded, s.taps * padded,
          true);
  }

  void to_columns(const Tile<T, D>& tile, int64_t q, const T* grad, T* columns) const {
    const int64_t in = s.in_group(), out = s.out_group(), blocks = (in + block - 1) / block;
    for (int64_t g = 0; g < s.groups; g++)
      multiply<T>(
          tile.n, rounded<T>(in) / L, out, {grad + g * out * POINTS, 1, POINTS},
          {packed.data() + (q * s.groups + g) * blocks * out * block, out * block, block},
          columns + g * in, row, false);
  }

  // a strip of the gradient for x, its parts added up
  void give(int64_t b, const Strip& strip, T* parts) const {
    const int64_t length = s.size[D - 1], rows = s.rows(), first = s.start(strip.group);
    int64_t area = length;
    for (int64_t a = 0; a < D - 1; a++) area *= s.size[a];
    T* to = d.by_x + (b * s.channels + strip.group * s.shared + strip.first) * area;
    for (int64_t row = 0; row < rows; row++) {
      const int64_t source = s.source(row);
      if (source < 0) continue;
      T* from = parts + first + (row * (length + 3) + 1) * s.shared + strip.first;
      for (int64_t j = 1; j < jobs.parts; j++)
        for (int64_t i = 0; i < length; i++)
          add_to(strip.count, from + j * s.numbers<T>() + i * s.shared, from + i * s.shared);
      transpose(from, s.shared, to + source * length, area, length, strip.count);
    }
  }

  void give_weight(int64_t o, T* jobs_weights) const {
    const int64_t in = s.in_group(), padded = rounded<T>(in), count = jobs.wave * jobs.parts;
    const int64_t columns = s.depthwise ? s.padded : padded;
    const int64_t start = s.depthwise ? o % each * s.taps * s.padded + o / each
                                      : o * s.taps * padded;
    for (int64_t q = 0; q < s.taps; q++)
      for (int64_t c = 0; c < in; c++) {
        const T* from = jobs_weights + start + q * columns + c;
        T sum = *from;
        for (int64_t j = 1; j < count; j++) sum += from[j * jobs.weights];
        d.by_weight[(o * in + c) * s.taps + q] = sum;
      }
  }

  const Problem& s;
  const Data<T>& d;
  const Jobs<T>& jobs;
  std::vector<T> shift, packed;
  bool dense, samples;
  bool apart;  // one offset group after the other, each with all its taps
  int64_t block, row, each;  // columns worked on at once; numbers from point to point
};

}  // namespace
