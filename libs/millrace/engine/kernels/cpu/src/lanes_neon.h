// Float vectors of 64-bit ARM.
#pragma once

#include <arm_neon.h>

#include "bfloat16.h"

namespace millrace {

using Vec = float32x4_t;
constexpr int kLanes = 4;
using Words = uint64x2_t;

inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec x) { vst1q_f32(p, x); }
inline Vec set1(float x) { return vdupq_n_f32(x); }
inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline Vec min(Vec a, Vec b) { return vminq_f32(a, b); }
inline Vec abs(Vec a) { return vabsq_f32(a); }
inline Vec round(Vec x) { return vrndnq_f32(x); }
// For whole powers in [-126, 127].
inline Vec scale_by_power(Vec x, Vec power) {
  const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(power), vdupq_n_s32(127));
  return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
}
inline Vec zero_where_less(Vec x, Vec a, Vec b) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(a, b)));
}
inline float sum(Vec x) { return vaddvq_f32(x); }
inline float highest(Vec x) { return vmaxvq_f32(x); }

inline Vec load(const bf16* p) {
  const uint16x4_t half = vld1_u16(reinterpret_cast<const uint16_t*>(p));
  return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

// Splits `kLanes` pairs into their first and second numbers.
inline void load_pairs(const bf16* p, Vec& first, Vec& second) {
  const uint32x4_t pairs = vld1q_u32(reinterpret_cast<const uint32_t*>(p));
  first = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
  second = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
}

inline Vec load(const int8_t* p) {
  int8_t bytes[8] = {p[0], p[1], p[2], p[3]};
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes)))));
}

inline Vec load(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }

inline void store(bf16* p, Vec x) {
  float values[kLanes];
  vst1q_f32(values, x);
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(values[i]);
}

// Rounds to the nearest integer in [-128, 127].
inline void store(int8_t* p, Vec x) {
  const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
  int8_t bytes[8];
  vst1_s8(bytes, vqmovn_s16(vcombine_s16(words, words)));
  std::memcpy(p, bytes, kLanes);
}

// Whole numbers of 16 bits, and the same as 256 * high + low, both signed.
inline void store(int16_t* p, Vec whole) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(whole))); }
inline void store_bytes(int8_t* high, int8_t* low, Vec whole) {
  const int32x4_t x = vcvtnq_s32_f32(whole);
  const int32x4_t upper = vshrq_n_s32(vaddq_s32(x, vdupq_n_s32(128)), 8);
  for (int i = 0; i < kLanes; ++i) {
    high[i] = static_cast<int8_t>(upper[i]);
    low[i] = static_cast<int8_t>(x[i]);
  }
}

inline bool any_less(Vec a, Vec b) { return vmaxvq_u32(vcltq_f32(a, b)) != 0; }

inline Words load(const uint64_t* p) { return vld1q_u64(p); }
inline Words set1_words(uint64_t x) { return vdupq_n_u64(x); }
inline Words add(Words a, Words b) { return vaddq_u64(a, b); }
inline Words multiply_low(Words a, Words b) { return vmull_u32(vmovn_u64(a), vmovn_u64(b)); }
inline Words high_half(Words x) { return vshrq_n_u64(x, 32); }
inline Words xor3(Words a, Words b, Words c) { return veorq_u64(a, veorq_u64(b, c)); }
inline Vec low_halves(Words even, Words odd) {
  const uint64x2_t both = vsliq_n_u64(even, odd, 32);
  return vcvtq_f32_u32(vreinterpretq_u32_u64(both));
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void pause() { asm volatile("yield"); }

}  // namespace millrace
