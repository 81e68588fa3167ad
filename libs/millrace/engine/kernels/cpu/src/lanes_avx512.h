// Float vectors of AVX-512.
#pragma once

#include <immintrin.h>

#include "bfloat16.h"

namespace millrace {

using Vec = __m512;
constexpr int kLanes = 16;
using Words = __m512i;

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
inline Vec round(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec scale_by_power(Vec x, Vec power) { return _mm512_scalef_ps(x, power); }
inline Vec zero_where_less(Vec x, Vec a, Vec b) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
inline float highest(Vec x) { return _mm512_reduce_max_ps(x); }

inline Vec load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Splits `kLanes` pairs into their first and second numbers.
inline void load_pairs(const bf16* p, Vec& first, Vec& second) {
  const __m512i pairs = _mm512_loadu_si512(static_cast<const void*>(p));
  first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}

inline Vec load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

inline Vec load(const int32_t* p) {
  return _mm512_cvtepi32_ps(_mm512_loadu_si512(static_cast<const void*>(p)));
}

inline void store(bf16* p, Vec x) {
#if defined(__AVX512BF16__)
  const __m256i half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i chosen = _mm512_mask_mov_epi32(up, nan, quiet);
  const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

// Rounds to the nearest integer in [-128, 127].
inline void store(int8_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

// Whole numbers of 16 bits as 256 * high + low, both signed.
inline void store_bytes(int8_t* high, int8_t* low, Vec whole) {
  const __m512i x = _mm512_cvtps_epi32(whole);
  const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(upper));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(x));
}

inline bool any_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }

inline Words load(const uint64_t* p) { return _mm512_loadu_si512(static_cast<const void*>(p)); }
inline Words set1_words(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline Words add(Words a, Words b) { return _mm512_add_epi64(a, b); }
inline Words multiply_low(Words a, Words b) { return _mm512_mul_epu32(a, b); }
inline Words high_half(Words x) { return _mm512_srli_epi64(x, 32); }
inline Words xor3(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Vec low_halves(Words even, Words odd) {
  const __m512i both = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  return _mm512_cvtepu32_ps(both);
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
inline void pause() { _mm_pause(); }

}  // namespace millrace
