// Root-mean-square norms, in float32.
#pragma once

#include "lanes.h"

namespace millrace {

// 1 / sqrt(mean of squares + eps) of x [n]; `padded` >= n numbers may be read, zeros beyond n.
inline float inverse_rms(const float* x, long n, long padded, float eps) {
  Vec squares = zero();
  for (long i = 0; i < padded; i += kLanes) {
    const Vec value = load(x + i);
    squares = fma(value, value, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps);
}

// out = weight * x / rms(x), all [padded].
inline void rms_norm(const float* x, const float* weight, long n, long padded, float eps,
                     float* out) {
  const Vec scale = set1(inverse_rms(x, n, padded, eps));
  for (long i = 0; i < padded; i += kLanes)
    store(out + i, mul(load(weight + i), mul(load(x + i), scale)));
}

}  // namespace millrace
