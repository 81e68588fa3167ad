// Row-major float32 weights → panels.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kinds.h"
#include "millrace_cpu.h"

namespace millrace {

// Bytes of a matrix [columns, k] in panels.
inline int64_t panel_bytes(int64_t kind, int64_t columns, int64_t k) {
  const long depth = round_up(k, kAlignK), panels = round_up(columns, kColumns) / kColumns;
  if (kind == MR_F32) return panels * panel_numbers<F32>(depth) * sizeof(float);
  if (kind == MR_BF16) return panels * panel_numbers<Bf16>(depth) * sizeof(bf16);
  if (kind == MR_INT4) return panels * panel_numbers<Int4>(depth);
  return panels * panel_numbers<Int8>(depth);
}

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

// How the numbers of one column's group stand for `count` weights.
template <class Kind>
struct GroupCode {
  float least = 0.0f;
  float step = 0.0f;
  float inverse = 0.0f;

  // Int8, symmetric: the largest magnitude becomes 127. Int4: the range in 15 steps.
  GroupCode(const float* weights, long count) {
    if (count == 0) return;
    if (!std::all_of(weights, weights + count, [](float weight) { return std::isfinite(weight); })) {
      // Whatever is multiplied with them is no number either, and is not taken for one.
      step = std::numeric_limits<float>::quiet_NaN();
      return;
    }
    const auto [low, high] = std::minmax_element(weights, weights + count);
    if constexpr (Kind::kHasLeast) {
      least = to_float(to_bf16(*low));
      step = to_float(to_bf16((*high - *low) / Kind::kHighest));
    } else {
      step = to_float(to_bf16_above(std::max(-*low, *high) / Kind::kHighest));
    }
    // Of less it would not be finite.
    if (step >= std::numeric_limits<float>::min()) inverse = 1.0f / step;
  }

  int number(float weight) const {
    const long number = std::lrintf((weight - least) * inverse);
    if constexpr (Kind::kHasLeast) return std::clamp(number, 0L, static_cast<long>(Kind::kHighest));
    return static_cast<int>(number) + Kind::kWeightOffset;
  }
};

// Int8 and Int4.
template <class Kind>
inline void pack_groups(const float* source, long columns, long k, uint8_t* panels) {
  const long depth = round_up(k, kAlignK), padded = round_up(columns, kColumns);
  std::fill_n(panels, padded / kColumns * panel_numbers<Kind>(depth), uint8_t{0});
  for (long column = 0; column < padded; ++column) {
    const long within = column % kColumns;
    for (long group = 0; group < depth / Kind::kGroup; ++group) {
      uint8_t* record = panels + column / kColumns * panel_numbers<Kind>(depth) +
                        group * Kind::kGroupBytes;
      const long first = group * Kind::kGroup;
      const long count = column < columns ? std::clamp(k - first, 0L, Kind::kGroup) : 0;
      const float* row = source + column * k + first;
      const GroupCode<Kind> code(row, count);
      auto* scales = reinterpret_cast<bf16*>(record + Kind::kGroupWeightBytes) + within;
      scales[0] = to_bf16(code.step);
      if constexpr (Kind::kHasLeast) scales[kColumns] = to_bf16(code.least);
      for (long i = 0; i < Kind::kGroup; ++i) {
        const long pack = i / Kind::kPack, part = pack % Kind::kNumbersPerByte;
        const long place = pack / Kind::kNumbersPerByte * kColumns + within;
        const int number = code.number(i < count ? row[i] : 0.0f);
        record[place * Kind::kPack + i % Kind::kPack] |= static_cast<uint8_t>(static_cast<unsigned>(number) << 4 * part);
      }
    }
  }
}

}  // namespace millrace
