// What weights and K/V are made of, and what is multiplied with them.
//
// Matrices lie in panels of 32 columns. Along K, `kPack` neighbours of a column lie side by side, as
// the dot-product instructions want them: panel[k / kPack][column][k % kPack].
#pragma once

#include <cstdint>

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
  using Sum = float;
  static constexpr int kPack = 1;
#if defined(__AVX512F__)
  static constexpr int kMaxRows = 12;
#else
  static constexpr int kMaxRows = 6;
#endif
};

struct Bf16 {
  using Weight = bf16;
  using Sum = float;
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

// Signed weights with one scale per column; inputs with one scale per row.
struct Int8 {
  using Weight = int8_t;
  using Sum = int32_t;
#if defined(MILLRACE_AMX)
  using Input = int8_t;
  static constexpr int kPack = 4;
  static constexpr int kMaxRows = 32;
#elif defined(__AVX512VNNI__)
  // The instruction multiplies unsigned by signed: inputs are moved up by 128, which adds 128 times
  // the sum of a column, known when the column is packed.
  using Input = uint8_t;
  static constexpr int kPack = 4;
  // With more, gcc runs out of address registers and spills: 8 rows give 375 GFLOP/s, 12 give 205.
  static constexpr int kMaxRows = 8;
#elif defined(__ARM_FEATURE_DOTPROD)
  using Input = int8_t;
  static constexpr int kPack = 4;
  static constexpr int kMaxRows = 6;
#else
  using Input = int16_t;
  static constexpr int kPack = 2;
  static constexpr int kMaxRows = 4;
#endif
  static constexpr int kInputOffset = sizeof(Input) == 1 && Input(-1) > Input(0) ? 128 : 0;
};

inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

}  // namespace millrace
