// The convolution, tile by tile.

#pragma once

#include "tile.h"

#include <torch/csrc/stable/ops.h>

namespace {

template <class T, int D>
class Forward {
 public:
  Forward(const Problem& s, const Data<T>& d)
      : s(s),
        d(d),
        shift(shifts<T>(s)),
        dense(d.weight && !s.depthwise),
        taps(dense ? std::max<int64_t>(1, std::min(s.taps, TERMS / s.channels)) : s.taps),
        block(width() * L),
        lines(dense ? s.groups * rounded<T>(s.out_group()) : s.padded + L),
        row(dense ? taps * s.channels + L : 0) {
    if (dense)
      pack();
    else if (d.weight)
      packed = factors(s, d.weight);
  }

  // `kept` has room for `wave` samples
  void run(T* kept, int64_t wave) const {
    const int64_t tiles = s.tiles(), strips = Strip::all(s), numbers = s.numbers<T>();
    for (int64_t b = 0; b < s.batch; b += wave) {
      const int64_t count = std::min(wave, s.batch - b);
      torch::stable::parallel_for(
          0, count * strips, grain(16 * s.pixels), [&](int64_t i, int64_t last) {
            for (; i < last; i++)
              keep(s, d.x + (b + i / strips) * d.sample_step, d.channel_step, d.pixel_step,
                   Strip(s, i % strips), kept + i / strips * numbers);
          });
      torch::stable::parallel_for(
          0, count * tiles, grain(tile_cycles(s)), [&](int64_t i, int64_t last) {
            Scratch scratch(
                Tile<T, D>::bytes(dense ? 1 : s.taps) + Scratch::size(POINTS * row * sizeof(T)) +
                Scratch::size(POINTS * lines * sizeof(T)));
            Tile<T, D> tile(scratch, dense ? 1 : s.taps);
            T* columns = scratch.template take<T>(POINTS * row);
            T* y = scratch.template take<T>(POINTS * lines);
            for (; i < last; i++) {
              tile.start(s, i % tiles);
              const T* x = kept + i / tiles * numbers;
              expect(tile, b + i / tiles);
              if (dense)
                multiplied(tile, x, b + i / tiles, columns, y);
              else
                summed(tile, x, b + i / tiles, y);
            }
          });
    }
  }

 private:
  static constexpr int64_t L = Lanes<T>::count;
  static constexpr int64_t TERMS = 128;  // of a product, at least, where the kernel has as many

  // the tile's lines of y are on their way into the cache while it is worked on
  void expect(const Tile<T, D>& tile, int64_t b) const {
    const int64_t count = d.weight ? s.outputs : s.channels;
    const T* to = d.y + b * count * s.points + tile.first;
    for (int64_t c = 0; c < count; c++, to += s.points)
      for (int64_t i = 0; i < POINTS; i += L) __builtin_prefetch(to + i, 1);
  }

  // [group][block of outputs][tap, channel][output]
  void pack() {
    const int64_t in = s.in_group(), out = s.out_group(), terms = s.taps * in;
    const int64_t blocks = (out + block - 1) / block;
    packed.resize(s.groups * blocks * terms * block);
    for (int64_t o = 0; o < s.outputs; o++) {
      const int64_t place = o % out;
      T* to = packed.data() + (o / out * blocks + place / block) * terms * block + place % block;
      for (int64_t c = 0; c < in; c++)
        for (int64_t q = 0; q < s.taps; q++)
          to[(q * in + c) * block] = d.weight[(o * in + c) * s.taps + q];
    }
  }

  void multiplied(const Tile<T, D>& tile, const T* x, int64_t b, T* columns, T* y) const {
    const int64_t in = s.in_group(), out = s.out_group(), padded = rounded<T>(out);
    const int64_t terms = s.taps * in, blocks = (out + block - 1) / block;
    for (int64_t g = 0; g < s.groups; g++) {
      T* to = y + g * padded;
      if (d.bias)
        std::copy(d.bias + g * out, d.bias + (g + 1) * out, to);
      else
        std::fill(to, to + padded, T(0));
    }
    for (int64_t p = 1; p < tile.n; p++) std::copy(y, y + lines, y + p * lines);
    const Places<T> places = tile.places(0);
    for (int64_t q = 0; q < s.taps; q += taps) {
      const int64_t count = std::min(taps, s.taps - q);
      for (int64_t i = 0; i < count; i++)
        for (int64_t g = 0; g < s.offset_groups; g++) {
          locate<T, D>(
              s, tile.base, shift.data() + (q + i) * D, d.offsets(s, b, g, q + i) + tile.first,
              masked(tile, b, g, q + i), tile.n, places);
          gather<T, 1 << D>(
              s, x + s.start(g), places, tile.n, columns + i * s.channels + g * s.shared, row);
        }
      const int64_t runs = s.groups == 1 ? 1 : count, each = s.groups == 1 ? count * in : in;
      for (int64_t g = 0; g < s.groups; g++)
        for (int64_t i = 0; i < runs; i++)
          multiply<T>(
              tile.n, padded / L, each, {columns + i * s.channels + g * in, row, 1},
              {packed.data() + (g * blocks * terms + (q + i) * in) * block, terms * block, block},
              y + g * padded, lines, true);
    }
    for (int64_t g = 0; g < s.groups; g++)
      transpose(
          y + g * padded, lines, d.y + (b * s.outputs + g * out) * s.points + tile.first, s.points,
          tile.n, out);
  }

  void summed(const Tile<T, D>& tile, const T* x, int64_t b, T* y) const {
    const int64_t each = d.weight ? s.out_group() : 1;
    for (int64_t j = 0; j < each; j++) {
      const T* factor = d.weight ? packed.data() + j * s.taps * s.padded : nullptr;
      for (int64_t g = 0; g < s.offset_groups; g++) {
        for (int64_t q = 0; q < s.taps; q++)
          locate<T, D>(
              s, tile.base, shift.data() + q * D, d.offsets(s, b, g, q) + tile.first,
              masked(tile, b, g, q), tile.n, tile.places(q));
        const int64_t c = g * s.shared;
        aggregate<T, 1 << D>(
            s, x + s.start(g), tile.places(0), factor ? factor + c : nullptr, tile.n, y + c);
      }
      if (d.bias)
        for (int64_t p = 0; p < tile.n; p++)
          for (int64_t c = 0; c < s.channels; c++) y[p * lines + c] += d.bias[c * each + j];
      transpose(
          y, lines, d.y + (b * s.channels * each + j) * s.points + tile.first, each * s.points,
          tile.n, s.channels);
    }
  }

  const T* masked(const Tile<T, D>& tile, int64_t b, int64_t group, int64_t q) const {
    return d.mask ? d.masks(s, b, group, q) + tile.first : nullptr;
  }

  const Problem& s;
  const Data<T>& d;
  std::vector<T> shift, packed;
  bool dense;
  int64_t taps, block, lines, row;  // taps of a product; numbers from point to point
};

}  // namespace
