// A box of outputs from vectors: rows that meet, cut into tiles.

#pragma once

#include "axis.h"
#include "correlate.h"
#include "planes.h"

#include <cstdint>
#include <vector>

namespace {

// The three passes are one: out[a] = sum over k of h[k] x[where a and k meet], on three axes.
enum Pass : int64_t { forward, by_input, by_weight };

struct Geometry {
  Axis axis[3];
  int inner;  // the axis that tiles lie along

  int row(int number) const { return number < inner ? number : number + 1; }
};

// Some outputs or some taps, with all that they meet.
struct Band {
  Box out, h, x;
  std::vector<std::vector<Pair>> rows[2];
  std::vector<Phase> phases;

  Band(const Geometry& g, const Range* outs, const Range* taps) {
    for (int i = 0; i < 3; i++) {
      const Axis& axis = g.axis[i];
      const int64_t margin = i == g.inner ? (WIDEST - 1) * axis.x_step : 0;
      out.range[i] = outs[i];
      h.range[i] = taps[i];
      x.range[i] = axis.reach(outs[i], taps[i]).both({-margin, axis.size + margin});
    }
    for (int i = 0; i < 2; i++) {
      const int r = g.row(i);
      for (int64_t a = outs[r].first; a < outs[r].last; a++)
        rows[i].push_back(g.axis[r].pairs(a, taps[r]));
    }
    phases = g.axis[g.inner].phases(outs[g.inner], taps[g.inner]);
  }
};

// out = start + the band's sums; start is a single vector, or null for what is in out.
template <class T>
void correlate_band(
    const Geometry& g, const Band& band, const Value<T>* h, const Value<T>* x,
    const Value<T>* start, Value<T>* out, std::vector<Line<T>>& lines) {
  const Axis& axis = g.axis[g.inner];
  const int r0 = g.row(0), r1 = g.row(1), c = g.inner;
  const int64_t x_step = band.x.step(c), h_step = band.h.step(c), out_step = band.out.step(c);
  const Steps steps{
      axis.k_step * h_step, axis.x_step * x_step, start ? 0 : axis.a_step * out_step,
      axis.a_step * out_step};
  std::vector<Line<T>> meeting;
  for (size_t i0 = 0; i0 < band.rows[0].size(); i0++)
    for (size_t i1 = 0; i1 < band.rows[1].size(); i1++) {
      meeting.clear();
      for (const Pair& p : band.rows[0][i0])
        for (const Pair& q : band.rows[1][i1])
          meeting.push_back(
              {h + (p.k - band.h.range[r0].first) * band.h.step(r0) +
                   (q.k - band.h.range[r1].first) * band.h.step(r1),
               x + (p.x - band.x.range[r0].first) * band.x.step(r0) +
                   (q.x - band.x.range[r1].first) * band.x.step(r1),
               0});
      Value<T>* row = out + int64_t(i0) * band.out.step(r0) + int64_t(i1) * band.out.step(r1);
      for (const Phase& phase : band.phases)
        for (int64_t i = 0, taken; i < phase.count; i += taken) {
          const auto correlate = correlate_for<T>(phase.count - i, steps.x == 1, &taken);
          lines.clear();
          for (const Class& k : phase.classes) {
            const Range met = axis.inside(k, i, taken);
            if (met.size() == 0) continue;
            const int64_t at_h =
                (k.k0 + met.first * axis.k_step - band.h.range[c].first) * h_step;
            const int64_t at_x =
                (k.x0 + (i + met.first) * axis.x_step - band.x.range[c].first) * x_step;
            for (const Line<T>& line : meeting)
              lines.push_back({line.h + at_h, line.x + at_x, met.size()});
          }
          Value<T>* to = row + (phase.a0 + i * axis.a_step - band.out.range[c].first) * out_step;
          correlate(lines.data(), int64_t(lines.size()), steps, start ? start : to, to);
        }
    }
}

constexpr int64_t SCRATCH = 512 << 10;  // bytes of a band, about half of a core's second cache

// Cut along outputs, or along taps for the gradient of the kernel, which has few outputs, until a
// band's vectors fit; but not into pieces below the kernel's extent, which would overlap too much.
inline std::vector<Band> bands(const Geometry& g, Pass pass) {
  Range whole[2][3];
  int64_t step[3], least[3];
  const int cut = pass == by_weight;
  for (int i = 0; i < 3; i++) {
    whole[0][i] = {0, g.axis[i].outs};
    whole[1][i] = {0, g.axis[i].taps};
    step[i] = whole[cut][i].last;
    least[i] = whole[1 - cut][i].last;
  }
  const auto cut_at = [&](const int64_t* first) {
    Range part[2][3];
    for (int i = 0; i < 3; i++) {
      part[0][i] = whole[0][i];
      part[1][i] = whole[1][i];
      part[cut][i] = {first[i], std::min(first[i] + step[i], whole[cut][i].last)};
    }
    return Band(g, part[0], part[1]);
  };
  const int64_t zero[3] = {0, 0, 0};
  for (int i = 0; i < 3;) {
    const Band band = cut_at(zero);
    const int64_t vectors = band.x.size() + (cut ? band.h : band.out).size();
    if (vectors * int64_t(sizeof(Value<float>)) <= SCRATCH) break;
    if (step[i] > std::max<int64_t>(least[i], 1))
      step[i] = (step[i] + 1) / 2;
    else
      i++;
  }
  std::vector<Band> found;
  int64_t first[3];
  for (first[0] = 0; first[0] < whole[cut][0].last; first[0] += step[0])
    for (first[1] = 0; first[1] < whole[cut][1].last; first[1] += step[1])
      for (first[2] = 0; first[2] < whole[cut][2].last; first[2] += step[2])
        found.push_back(cut_at(first));
  return found;
}

}  // namespace
