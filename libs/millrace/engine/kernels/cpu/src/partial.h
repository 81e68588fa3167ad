// Attention over some of the keys, and how two such results are merged (online softmax: Milakov and
// Gimelshein, arXiv 1805.02867).
#pragma once

#include <algorithm>

#include "lanes.h"

namespace millrace {

// Masked scores; far from the float limits, so that differences of two stay finite.
constexpr float kMasked = -1e30f;

// One state per query row: weighted values, highest score in base 2, sum of weights.
struct Partial {
  float* values;  // [rows][padded value dim]
  float* highest;
  float* sums;

  void clear(long rows, long value_dim) const {
    std::fill_n(values, rows * value_dim, 0.0f);
    std::fill_n(highest, rows, kMasked);
    std::fill_n(sums, rows, 0.0f);
  }

  // Of a row that sees no key of `other` every bit stays: its factors are exactly 1 and 0.
  void merge(const Partial& other, long rows, long value_dim) const {
    for (long row = 0; row < rows; ++row) {
      const float top = std::max(highest[row], other.highest[row]);
      const Vec old_factor = exp2(set1(highest[row] - top));
      const Vec new_factor = exp2(set1(other.highest[row] - top));
      float factors[2 * kLanes];
      store(factors, old_factor);
      store(factors + kLanes, new_factor);
      highest[row] = top;
      sums[row] = sums[row] * factors[0] + other.sums[row] * factors[kLanes];
      float* to = values + row * value_dim;
      const float* from = other.values + row * value_dim;
      for (long dim = 0; dim < value_dim; dim += kLanes)
        store(to + dim, fma(load(from + dim), new_factor, mul(load(to + dim), old_factor)));
    }
  }
};

}  // namespace millrace
