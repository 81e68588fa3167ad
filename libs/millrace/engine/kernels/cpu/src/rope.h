// Rotary position embeddings: dimension i turns with dimension i + head_dim / 2 (arXiv 2104.09864).
#pragma once

#include <cmath>

namespace millrace {

// cos and sin [half] of one position.
inline void rotation(long position, const float* frequencies, long half, float* cos, float* sin) {
  for (long i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
}

inline void rotate(float* head, const float* cos, const float* sin, long half) {
  for (long i = 0; i < half; ++i) {
    const float low = head[i], high = head[i + half];
    head[i] = low * cos[i] - high * sin[i];
    head[i + half] = high * cos[i] + low * sin[i];
  }
}

}  // namespace millrace
