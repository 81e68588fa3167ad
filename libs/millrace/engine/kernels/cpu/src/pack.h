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

// The bfloat16 not below `x` >= 0.
inline bf16 to_bf16_above(float x) {
  bf16 near = to_bf16(x);
  if (to_float(near) < x) ++near.bits;
  return near;
}

// Symmetric: the largest magnitude of a column's group becomes 127.
inline void pack_int8(const float* source, long columns, long k, uint8_t* panels) {
  const long depth = round_up(k, kAlignK), padded = round_up(columns, kColumns);
  constexpr auto zero_weight = static_cast<uint8_t>(Int8::kWeightOffset);
  for (long column = 0; column < padded; ++column) {
    const long within = column % kColumns;
    for (long group = 0; group < depth / Int8::kGroup; ++group) {
      uint8_t* record = panels + column / kColumns * panel_numbers<Int8>(depth) +
                        group * Int8::kGroupBytes;
      const long first = group * Int8::kGroup;
      const long count = column < columns ? std::clamp(k - first, 0L, Int8::kGroup) : 0;
      const float* row = source + column * k + first;
      float most = 0.0f;
      for (long i = 0; i < count; ++i) most = std::max(most, std::fabs(row[i]));
      const bf16 scale = to_bf16_above(most / 127.0f);
      const float inverse = most > 0 ? 1.0f / to_float(scale) : 0.0f;
      reinterpret_cast<bf16*>(record + Int8::kGroupWeightBytes)[within] = scale;
      for (long i = 0; i < Int8::kGroup; ++i) {
        uint8_t* to = record + (i / Int8::kPack * kColumns + within) * Int8::kPack + i % Int8::kPack;
        *to = zero_weight;
        if (i < count)
          *to = static_cast<uint8_t>(std::lrintf(row[i] * inverse) + Int8::kWeightOffset);
      }
    }
  }
}

}  // namespace millrace
