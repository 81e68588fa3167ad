// Row-major float32 weights → panels.
#pragma once

#include <algorithm>
#include <cmath>

#include "kinds.h"

namespace millrace {

// Where number (column, k) lies in a matrix whose padded K is `depth`.
template <class Kind>
inline long panel_offset(long column, long k, long depth) {
  const long panel = column / kColumns * kColumns * depth;
  return panel + (k / Kind::kPack * kColumns + column % kColumns) * Kind::kPack + k % Kind::kPack;
}

template <class Kind>
inline void pack(const float* source, long columns, long k, typename Kind::Weight* panels) {
  const long depth = round_up(k, kAlignK);
  std::fill_n(panels, round_up(columns, kColumns) * depth, typename Kind::Weight{});
  for (long column = 0; column < columns; ++column)
    for (long i = 0; i < k; ++i)
      put_number(panels + panel_offset<Kind>(column, i, depth), source[column * k + i]);
}

// Symmetric, one scale per column: its largest magnitude becomes 127.
inline void pack_int8(const float* source, long columns, long k, int8_t* panels, float* scales,
                      int32_t* offsets) {
  const long depth = round_up(k, kAlignK), padded = round_up(columns, kColumns);
  std::fill_n(panels, padded * depth, int8_t{0});
  std::fill_n(scales, padded, 0.0f);
  std::fill_n(offsets, padded, 0);
  for (long column = 0; column < columns; ++column) {
    const float* row = source + column * k;
    float most = 0.0f;
    for (long i = 0; i < k; ++i) most = std::max(most, std::fabs(row[i]));
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t total = 0;
    for (long i = 0; i < k; ++i) {
      const auto number = static_cast<int8_t>(std::lrintf(row[i] * inverse));
      panels[panel_offset<Int8>(column, i, depth)] = number;
      total += number;
    }
    scales[column] = most / 127.0f;
    offsets[column] = total * Int8::kInputOffset;
  }
}

}  // namespace millrace
