// Float vectors of the instruction set this file is compiled for, under one set of names.
//
// `Vec` holds `kLanes` floats. Every function is one or two instructions, except exp2. Sums over a
// vector have a fixed order, so that a row's result never depends on the rows beside it.
//
// `Words` holds `kLanes / 2` unsigned integers of 64 bits. `multiply_low` is the whole product of the
// low halves, `low_halves` turns those of two vectors, taken in turn, into floats.
#pragma once

#include <cmath>

#include "bfloat16.h"

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#elif defined(__aarch64__)
#include "lanes_neon.h"
#else
#error "no float vectors for this instruction set"
#endif

namespace millrace {

constexpr float kLog2e = 1.44269504088896340736f;

// 2^x for x <= 127, exactly 1 at 0 and exactly 0 below -126; relative error under 2e-7. The polynomial
// 1 + f q(f) nearest to 2^f on [-1/2, 1/2], and the exponent put together from the whole part. What
// is computed of an x below -126 is thrown away.
inline Vec exp2(Vec x) {
  const Vec whole = round(x);
  const Vec f = sub(x, whole);
  Vec p = set1(1.32647271e-3f);
  p = fma(p, f, set1(9.67151286e-3f));
  p = fma(p, f, set1(5.55073375e-2f));
  p = fma(p, f, set1(2.40222421e-1f));
  p = fma(p, f, set1(6.93146978e-1f));
  p = fma(p, f, set1(1.0f));
  return zero_where_less(scale_by_power(p, whole), x, set1(-126.0f));
}

inline Vec sigmoid(Vec x) {
  // Beyond +-80 the result is 0 or 1 to the last bit, and the exponential stays finite. In this order
  // the minimum of a number and a NaN is the NaN on every machine.
  const Vec y = max(set1(-80.0f), min(set1(80.0f), x));
  return div(set1(1.0f), add(set1(1.0f), exp2(mul(y, set1(-kLog2e)))));
}

inline Vec silu(Vec x) { return mul(x, sigmoid(x)); }

inline Vec tanh(Vec x) { return fma(set1(2.0f), sigmoid(add(x, x)), set1(-1.0f)); }

}  // namespace millrace
