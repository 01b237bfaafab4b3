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

// Sums from `out` on in a row, which one call of `run` starts (the first one) or adds to.
template <class T>
struct Call {
  Correlate<T> run;
  int64_t out;
  Part part;
  bool first;
};

// Some outputs or some taps, with all that they meet.
template <class T>
struct Band {
  Box out, h, x;
  std::vector<std::vector<Pair>> rows[2];
  std::vector<Call<T>> calls;  // for every row
  Steps steps;                 // within a row

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
    const Axis& axis = g.axis[g.inner];
    const int64_t h_step = h.step(g.inner), x_step = x.step(g.inner);
    steps = {axis.k_step * h_step, axis.x_step * x_step, 0, axis.a_step};
    for (const Phase& phase : axis.phases(outs[g.inner], taps[g.inner]))
      for (int64_t i = 0, taken; i < phase.count; i += taken) {
        Call<T> call{correlate_for<T>(phase.count - i, steps.x == 1, &taken),
                     phase.a0 + i * axis.a_step - outs[g.inner].first, {0, 0, 0}, true};
        for (const Class& c : phase.classes) {
          const Range met = axis.inside(c, i, taken);
          if (met.size() == 0) continue;
          call.part = {(c.k0 + met.first * axis.k_step - h.range[g.inner].first) * h_step,
                       (c.x0 + (i + met.first) * axis.x_step - x.range[g.inner].first) * x_step,
                       met.size()};
          calls.push_back(call);
          call.first = false;
        }
        if (call.first) calls.push_back(call);
      }
  }

  // multiply-adds of vectors, and vectors read and written
  int64_t work() const {
    int64_t found = 0;
    for (const Call<T>& call : calls) found += call.part.n * WIDEST;
    for (const auto& axis : rows) {
      int64_t pairs = 0;
      for (const auto& row : axis) pairs += int64_t(row.size());
      found *= pairs;
    }
    return found + h.size() + x.size() + out.size();
  }
};

// out = start + the band's sums; start is a single vector, or null for what is in out, whose
// vectors lie out_step apart. After every row `between` is called with the part that is done.
template <class T, class Between>
void correlate_band(
    const Geometry& g, const Band<T>& band, const Value<T>* h, const Value<T>* x,
    const Value<T>* start, Value<T>* out, const int64_t* out_step, const Between& between) {
  const int r0 = g.row(0), r1 = g.row(1);
  const int64_t count = int64_t(band.rows[0].size()), width = int64_t(band.rows[1].size());
  Steps fresh = band.steps;
  fresh.out *= out_step[g.inner];
  Steps more = fresh;
  more.start = more.out;
  if (!start) fresh = more;
  std::vector<Line<T>> lines;
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = 0; j < width; j++) {
      lines.clear();
      for (const Pair& p : band.rows[0][i])
        for (const Pair& q : band.rows[1][j])
          lines.push_back({h + (p.k - band.h.range[r0].first) * band.h.step(r0) +
                               (q.k - band.h.range[r1].first) * band.h.step(r1),
                           x + (p.x - band.x.range[r0].first) * band.x.step(r0) +
                               (q.x - band.x.range[r1].first) * band.x.step(r1)});
      Value<T>* row = out + i * out_step[r0] + j * out_step[r1];
      for (const Call<T>& call : band.calls) {
        Value<T>* to = row + call.out * out_step[g.inner];
        if (call.first)
          call.run(lines.data(), int64_t(lines.size()), call.part, fresh, start ? start : to, to);
        else
          call.run(lines.data(), int64_t(lines.size()), call.part, more, to, to);
      }
      between(i * width + j, count * width);
    }
}

constexpr int64_t SCRATCH = 512 << 10;  // bytes of a band, about half of a core's second cache

// Cut along outputs, or along taps for the gradient of the kernel, which has few outputs, until a
// band's vectors fit; but not into pieces below the kernel's extent, which would overlap too much.
template <class T>
std::vector<Band<T>> bands(const Geometry& g, Pass pass) {
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
    return Band<T>(g, part[0], part[1]);
  };
  const int64_t zero[3] = {0, 0, 0};
  for (int i = 0; i < 3;) {
    const Band<T> band = cut_at(zero);
    const int64_t vectors = band.x.size() + (cut ? band.h : band.out).size();
    if (vectors * int64_t(sizeof(Value<T>)) <= SCRATCH) break;
    if (step[i] > std::max<int64_t>(least[i], 1))
      step[i] = (step[i] + 1) / 2;
    else
      i++;
  }
  std::vector<Band<T>> found;
  int64_t first[3];
  for (first[0] = 0; first[0] < whole[cut][0].last; first[0] += step[0])
    for (first[1] = 0; first[1] < whole[cut][1].last; first[1] += step[1])
      for (first[2] = 0; first[2] < whole[cut][2].last; first[2] += step[2])
        found.push_back(cut_at(first));
  return found;
}

}  // namespace
