// exp for vectors, without calls.

#pragma once

#include "vector.h"

#include <cstring>

namespace {

// exp(x) for -87 <= x <= 0 (double: -708) to 1 unit in the last place, NaN for NaN: 2^n e^r with
// |r| <= ln(2) / 2, e^r = 1 + r + r^2 P(r). Adding `shift` rounds to an integer and leaves it in
// the lowest bits.
INLINE void exponential(Value<float>& x) {
  constexpr float shift = 12582912.0f;
  Value<float> t = x * 1.44269504088896341f + shift;
  Value<float> n = t - shift;
  Value<float> r = x - n * 0.693359375f - n * -2.12194440e-4f;
  Value<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Index<float> bits;
  std::memcpy(&bits, &t, sizeof bits);
  bits = (bits + 127) << 23;
  Value<float> power;
  std::memcpy(&power, &bits, sizeof power);
  x = p * power;
}

INLINE void exponential(Value<double>& x) {
  constexpr double shift = 6755399441055744.0;
  Value<double> t = x * 1.4426950408889634074 + shift;
  Value<double> n = t - shift;
  Value<double> r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
  Value<double> p = r * (1.0 / 6227020800) + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  Index<double> bits;
  std::memcpy(&bits, &t, sizeof bits);
  bits = (bits + 1023) << 52;
  Value<double> power;
  std::memcpy(&power, &bits, sizeof power);
  x = p * power;
}

}  // namespace
