// What weights and K/V are made of, and what is multiplied with them.
//
// Matrices lie in panels of 32 columns; sums are float32. Along K, `kPack` neighbours of a column lie side by side, as
// the dot-product instructions want them: panel[k / kPack][column][k % kPack].
#pragma once

#include <cstdint>
#include <type_traits>

#include "bfloat16.h"
#include "lanes.h"

namespace millrace {

constexpr int kColumns = 32;
// K is padded with zeros to a multiple of this, the widest tile row (64 bytes of int8).
constexpr long kAlignK = 64;

#if defined(__AMX_TILE__) || defined(MILLRACE_EMULATE_AMX)
#define MILLRACE_AMX 1
#endif

struct F32 {
  using Weight = float;
  using Input = float;
  static constexpr int kPack = 1;
#if defined(__AVX512F__)
  static constexpr int kMaxRows = 12;
#else
  static constexpr int kMaxRows = 6;
#endif
};

struct Bf16 {
  using Weight = bf16;
  static constexpr int kPack = 2;
#if defined(MILLRACE_AMX)
  using Input = bf16;
  static constexpr int kMaxRows = 32;
#elif defined(__AVX512BF16__)
  using Input = bf16;
  static constexpr int kMaxRows = 12;
#elif defined(__AVX512F__)
  using Input = float;
  static constexpr int kMaxRows = 10;
#else
  using Input = float;
  static constexpr int kMaxRows = 4;
#endif
};

// Weights of 8 bits with one bfloat16 scale per column and group of 32 numbers along K, inputs of 16
// bits with one scale per row. Sums of a group are exact integers. Inputs of 8 bits would be twice
// as fast and change the likeliest token of every twentieth position (docs/performance.md).
//
// A panel is a run of groups: kGroupWeightBytes of weights, then 32 scales.
struct Int8 {
  static constexpr long kGroup = 32;
#if defined(MILLRACE_AMX)
  // Tiles sum whole columns, so the weights of a panel are made wide first.
  using Input = bf16;
  static constexpr int kPack = 2;
  static constexpr int kMaxRows = Bf16::kMaxRows;
#elif defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
  // An input is 256 * high + low, both signed bytes; 32 high bytes, then the 32 low bytes.
  using Input = int8_t;
  static constexpr int kPack = 4;
  static constexpr int kMaxRows = 6;
#else
  using Input = int16_t;
  static constexpr int kPack = 2;
  static constexpr int kMaxRows = 4;
#endif
  using Weight = uint8_t;  // bytes of records
#if defined(__AVX512VNNI__) && !defined(MILLRACE_AMX)
  // The instruction multiplies unsigned by signed: weights are moved up by 128, which adds 128
  // times the sum of the inputs; each row brings that along.
  static constexpr int kWeightOffset = 128;
#else
  static constexpr int kWeightOffset = 0;
#endif
  static constexpr float kHighest = 127.0f;  // weight
  static constexpr int kNumbersPerByte = 1;
  static constexpr bool kHasLeast = false;
  static constexpr long kGroupWeightBytes = kGroup * kColumns;
  static constexpr long kGroupBytes = kGroupWeightBytes + kColumns * sizeof(bf16);
  static constexpr float kInputLimit = 32512.0f;  // 127 * 256: the high byte stays below 128
};

// Weights of 4 bits, a step and a least value in bfloat16 per column and group of 32 along K: weight
// = least + step * number. All else is as in Int8.
//
// The pack of neighbours 2 i lies in the low halves of the bytes of pack i, 2 i + 1 in the high ones.
// After the numbers of a group come 32 steps, then 32 least values.
struct Int4 : Int8 {
  static constexpr int kWeightOffset = 0;
  static constexpr int kNumbersPerByte = 2;
  static constexpr bool kHasLeast = true;
  static constexpr long kGroupWeightBytes = kGroup * kColumns / 2;
  static constexpr long kGroupBytes = kGroupWeightBytes + 2 * kColumns * sizeof(bf16);
  static constexpr float kHighest = 15.0f;
};

// Kinds whose panels are runs of groups.
template <class Kind>
constexpr bool kIsGrouped = std::is_base_of_v<Int8, Kind>;

#if defined(MILLRACE_AMX)
// Tiles take bfloat16: K/V of 8 bits are made wide.
using Int8Kv = Bf16;
#else
// K/V of 8 bits with one float scale per token and head, inputs as those of Int8: queries, and the
// weights of a piece of keys, are integers of 16 bits with one scale per row. Sums are exact.
struct Int8Kv {
  using Input = Int8::Input;
  using Weight = uint8_t;
  static constexpr int kPack = Int8::kPack;
  static constexpr int kWeightOffset = Int8::kWeightOffset;
#if defined(__AVX512VNNI__)
  static constexpr int kMaxRows = 6;
#else
  static constexpr int kMaxRows = 4;
#endif
};
#endif

template <class Kind>
constexpr bool kTakesIntegers = std::is_integral_v<typename Kind::Input>;

inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

// Elements of `Kind::Weight` in a panel whose padded K is `depth`.
template <class Kind>
inline long panel_numbers(long depth) {
  if constexpr (kIsGrouped<Kind>)
    return depth / Kind::kGroup * Kind::kGroupBytes;
  else
    return depth * kColumns;
}

}  // namespace millrace
