// Float vectors of AVX2 with FMA.
#pragma once

#include <immintrin.h>

#include "bfloat16.h"

namespace millrace {

using Vec = __m256;
constexpr int kLanes = 8;
using Words = __m256i;

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vec round(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// For whole powers in [-126, 127].
inline Vec scale_by_power(Vec x, Vec power) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
inline Vec zero_where_less(Vec x, Vec a, Vec b) {
  return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
inline float sum(Vec x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float highest(Vec x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline Vec load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Splits `kLanes` pairs into their first and second numbers.
inline void load_pairs(const bf16* p, Vec& first, Vec& second) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  first = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  second = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

inline Vec load(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

inline Vec load(const int32_t* p) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline void store(bf16* p, Vec x) {
  alignas(32) float values[kLanes];
  _mm256_store_ps(values, x);
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(values[i]);
}

// Rounds to the nearest integer in [-128, 127].
inline void store(int8_t* p, Vec x) {
  const __m256i wide = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

// Whole numbers of 16 bits.
inline void store(int16_t* p, Vec whole) {
  const __m256i wide = _mm256_cvtps_epi32(whole);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
}

inline bool any_less(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0;
}

inline Words load(const uint64_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Words set1_words(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
inline Words add(Words a, Words b) { return _mm256_add_epi64(a, b); }
inline Words multiply_low(Words a, Words b) { return _mm256_mul_epu32(a, b); }
inline Words high_half(Words x) { return _mm256_srli_epi64(x, 32); }
inline Words xor3(Words a, Words b, Words c) {
  return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
}
inline Vec low_halves(Words even, Words odd) {
  const __m256i both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  const Vec high = _mm256_cvtepi32_ps(_mm256_srli_epi32(both, 16));
  const Vec low = _mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(0xffff)));
  return fma(high, set1(65536.0f), low);
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
inline void pause() { _mm_pause(); }

}  // namespace millrace
