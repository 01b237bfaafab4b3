// Where the entries of one axis meet: an output a and a tap k read the input x at
//   x div = alpha a + beta k + gamma,  if that is whole and inside.
// Forward a is a place of y, k of the kernel; for the gradient of x, a is a place of x, k of the
// kernel, and the input is the gradient of y; for that of the kernel, a is its tap and k a place of y.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

struct Range {
  int64_t first, last;  // the last one excluded

  int64_t size() const { return last - first; }
  Range both(Range other) const {
    return {std::max(first, other.first), std::max(std::max(first, other.first),
                                                   std::min(last, other.last))};
  }
};

inline int64_t floored(int64_t a, int64_t b) { return a / b - (a % b != 0 && a < 0); }

// Outputs a0 + i a_step and taps k0 + j k_step that meet at x0 + (i + j) x_step.
struct Class {
  int64_t k0, taps, x0;
};

struct Phase {
  int64_t a0, count;
  std::vector<Class> classes;
};

struct Pair {
  int64_t k, x;
};

struct Axis {
  int64_t outs, taps, size;
  int64_t alpha, beta, gamma, div;
  int64_t a_step, k_step, x_step;

  Axis() = default;
  Axis(int64_t outs, int64_t taps, int64_t size, int64_t alpha, int64_t beta, int64_t gamma,
       int64_t div)
      : outs(outs), taps(taps), size(size), alpha(alpha), beta(beta), gamma(gamma), div(div) {
    const int64_t step = std::lcm(std::lcm(alpha, std::abs(beta)), div);
    a_step = step / alpha;
    k_step = step / beta;
    x_step = step / div;
  }

  // taps and inputs that an output meets
  std::vector<Pair> pairs(int64_t a, Range k) const {
    std::vector<Pair> found;
    for (; k.first < k.last; k.first++) {
      const int64_t at = alpha * a + beta * k.first + gamma;
      if (at % div == 0 && at >= 0 && at / div < size) found.push_back({k.first, at / div});
    }
    return found;
  }

  // all inputs between those that are met, outside ones too
  Range reach(Range a, Range k) const {
    const int64_t ends[] = {beta * k.first, beta * (k.last - 1)};
    const int64_t low = alpha * a.first + std::min(ends[0], ends[1]) + gamma;
    const int64_t high = alpha * (a.last - 1) + std::max(ends[0], ends[1]) + gamma;
    return {-floored(-low, div), floored(high, div) + 1};
  }

  // the outputs and taps of these ranges; taps are in the order of their inputs
  std::vector<Phase> phases(Range a, Range k) const {
    std::vector<Phase> found;
    const int64_t stride = std::abs(k_step);
    for (int64_t a0 = a.first; a0 < std::min(a.first + a_step, a.last); a0++) {
      Phase phase{a0, (a.last - a0 + a_step - 1) / a_step, {}};
      for (int64_t k0 = k.first; k0 < std::min(k.first + stride, k.last); k0++) {
        const int64_t n = (k.last - k0 + stride - 1) / stride;
        const int64_t first = beta > 0 ? k0 : k0 + (n - 1) * stride;
        const int64_t at = alpha * a0 + beta * first + gamma;
        if (at % div == 0) phase.classes.push_back({first, n, at / div});
      }
      found.push_back(std::move(phase));
    }
    return found;
  }

  // which taps of a class reach the inside from the outputs i to i + count - 1
  Range inside(const Class& c, int64_t i, int64_t count) const {
    const Range met{-floored(c.x0, x_step) - (i + count - 1),
                    floored(size - 1 - c.x0, x_step) + 1 - i};
    return Range{0, c.taps}.both(met);
  }
};

}  // namespace
