// bfloat16: the upper half of a float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace millrace {

struct bf16 {
  uint16_t bits;
};

inline float to_float(bf16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline float to_float(float x) { return x; }

// Rounds to the nearest, ties to even. A NaN stays one: adding to its bits could make it infinite.
inline bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline void put_number(float* to, float x) { *to = x; }
inline void put_number(bf16* to, float x) { *to = to_bf16(x); }
inline void put_number(int8_t* to, float x) { *to = static_cast<int8_t>(std::lrintf(x)); }

}  // namespace millrace
