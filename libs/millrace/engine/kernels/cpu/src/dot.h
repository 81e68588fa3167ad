// The one inner loop: a few rows of input times one panel of 32 columns.
//
// Every output is one accumulator that takes its products in the order of K, whatever the number of
// rows. A token's numbers are therefore the same alone, in a batch, in a prefill and in a decode
// step.
#pragma once

#include <array>
#include <utility>

#include "kinds.h"
#include "tiles.h"

namespace millrace {

// R rows by N vectors of one panel, beginning at its vector `first`.
template <class Kind, int R, int N>
struct Block;

template <int R, int N>
struct Block<F32, R, N> {
  static void run(const float* a, long stride, const float* b, long k, float* out, long out_stride,
                  bool add) {
    Vec sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sums[r][n] = add ? load(out + r * out_stride + n * kLanes) : zero();
    for (long i = 0; i < k; ++i) {
      Vec column[N];
      for (int n = 0; n < N; ++n) column[n] = load(b + i * kColumns + n * kLanes);
      for (int r = 0; r < R; ++r) {
        const Vec x = set1(a[r * stride + i]);
        for (int n = 0; n < N; ++n) sums[r][n] = fma(x, column[n], sums[r][n]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};

#if !defined(__AVX512BF16__)
template <int R, int N>
struct Block<Bf16, R, N> {
  static void run(const float* a, long stride, const bf16* b, long k, float* out, long out_stride,
                  bool add) {
    Vec sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sums[r][n] = add ? load(out + r * out_stride + n * kLanes) : zero();
    for (long i = 0; i < k; i += 2) {
      Vec even[N], odd[N];
      for (int n = 0; n < N; ++n)
        load_pairs(b + i * kColumns + n * kLanes * 2, even[n], odd[n]);
      for (int r = 0; r < R; ++r) {
        const Vec x = set1(a[r * stride + i]), y = set1(a[r * stride + i + 1]);
        for (int n = 0; n < N; ++n) sums[r][n] = fma(y, odd[n], fma(x, even[n], sums[r][n]));
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};
#elif !defined(MILLRACE_AMX)
template <int R, int N>
struct Block<Bf16, R, N> {
  static void run(const bf16* a, long stride, const bf16* b, long k, float* out, long out_stride,
                  bool add) {
    Vec sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sums[r][n] = add ? load(out + r * out_stride + n * kLanes) : zero();
    for (long i = 0; i < k; i += 2) {
      __m512bh pairs[N];
      for (int n = 0; n < N; ++n)
        pairs[n] = reinterpret_cast<__m512bh>(
            _mm512_loadu_si512(static_cast<const void*>(b + i * kColumns + n * kLanes * 2)));
      for (int r = 0; r < R; ++r) {
        int both;
        std::memcpy(&both, a + r * stride + i, sizeof both);
        const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], x, pairs[n]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};
#endif

#if defined(MILLRACE_AMX)
// Int8 and Bf16 go through tiles.
#elif defined(__AVX512VNNI__)
template <int R, int N>
struct Block<Int8, R, N> {
  static void run(const uint8_t* a, long stride, const int8_t* b, long k, int32_t* out,
                  long out_stride, bool add) {
    __m512i sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        sums[r][n] = add ? _mm512_loadu_si512(out + r * out_stride + n * kLanes)
                         : _mm512_setzero_si512();
    for (long i = 0; i < k; i += 4) {
      __m512i fours[N];
      for (int n = 0; n < N; ++n)
        fours[n] = _mm512_loadu_si512(b + i * kColumns + n * kLanes * 4);
      for (int r = 0; r < R; ++r) {
        int four;
        std::memcpy(&four, a + r * stride + i, sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_dpbusd_epi32(sums[r][n], x, fours[n]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        _mm512_storeu_si512(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};
#elif defined(__AVX2__)
template <int R, int N>
struct Block<Int8, R, N> {
  static void run(const int16_t* a, long stride, const int8_t* b, long k, int32_t* out,
                  long out_stride, bool add) {
    __m256i sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        sums[r][n] = add ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                               out + r * out_stride + n * kLanes))
                         : _mm256_setzero_si256();
    for (long i = 0; i < k; i += 2) {
      __m256i pairs[N];
      for (int n = 0; n < N; ++n)
        pairs[n] = _mm256_cvtepi8_epi16(_mm_loadu_si128(
            reinterpret_cast<const __m128i*>(b + i * kColumns + n * kLanes * 2)));
      for (int r = 0; r < R; ++r) {
        int both;
        std::memcpy(&both, a + r * stride + i, sizeof both);
        const __m256i x = _mm256_set1_epi32(both);
        for (int n = 0; n < N; ++n)
          sums[r][n] = _mm256_add_epi32(sums[r][n], _mm256_madd_epi16(x, pairs[n]));
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * out_stride + n * kLanes),
                            sums[r][n]);
  }
};
#elif defined(__ARM_FEATURE_DOTPROD)
template <int R, int N>
struct Block<Int8, R, N> {
  static void run(const int8_t* a, long stride, const int8_t* b, long k, int32_t* out,
                  long out_stride, bool add) {
    int32x4_t sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        sums[r][n] = add ? vld1q_s32(out + r * out_stride + n * kLanes) : vdupq_n_s32(0);
    for (long i = 0; i < k; i += 4) {
      int8x16_t fours[N];
      for (int n = 0; n < N; ++n) fours[n] = vld1q_s8(b + i * kColumns + n * kLanes * 4);
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, a + r * stride + i, sizeof four);
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
        for (int n = 0; n < N; ++n) sums[r][n] = vdotq_s32(sums[r][n], x, fours[n]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) vst1q_s32(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};
#else
template <int R, int N>
struct Block<Int8, R, N> {
  static void run(const int16_t* a, long stride, const int8_t* b, long k, int32_t* out,
                  long out_stride, bool add) {
    int32x4_t sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        sums[r][n] = add ? vld1q_s32(out + r * out_stride + n * kLanes) : vdupq_n_s32(0);
    for (long i = 0; i < k; i += 2) {
      for (int n = 0; n < N; ++n) {
        const int16x8_t pairs = vmovl_s8(vld1_s8(b + i * kColumns + n * kLanes * 2));
        const int16x4_t even = vuzp1_s16(vget_low_s16(pairs), vget_high_s16(pairs));
        const int16x4_t odd = vuzp2_s16(vget_low_s16(pairs), vget_high_s16(pairs));
        for (int r = 0; r < R; ++r) {
          sums[r][n] = vmlal_n_s16(sums[r][n], even, a[r * stride + i]);
          sums[r][n] = vmlal_n_s16(sums[r][n], odd, a[r * stride + i + 1]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) vst1q_s32(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};
#endif

#if defined(__AVX512F__)
constexpr int kBlockVectors = 2;
#elif defined(__AVX2__)
constexpr int kBlockVectors = 2;
#else
constexpr int kBlockVectors = 4;
#endif

template <class Kind>
using BlockFunction = void (*)(const typename Kind::Input*, long, const typename Kind::Weight*, long,
                               typename Kind::Sum*, long, bool);

template <class Kind, int... R>
constexpr std::array<BlockFunction<Kind>, sizeof...(R)> block_functions(
    std::integer_sequence<int, R...>) {
  return {&Block<Kind, R + 1, kBlockVectors>::run...};
}

// out[rows][32] (+)= a[rows][k] * panel[k][32], for up to Kind::kMaxRows rows.
template <class Kind>
inline void dot(const typename Kind::Input* a, long stride, int rows,
                const typename Kind::Weight* panel, long k, typename Kind::Sum* out,
                long out_stride, bool add) {
#if defined(MILLRACE_AMX)
  if constexpr (!std::is_same_v<Kind, F32>) {
    dot_tiles<Kind>(a, stride, rows, panel, k, out, out_stride, add);
    return;
  } else
#endif
  {
    static constexpr auto functions =
        block_functions<Kind>(std::make_integer_sequence<int, Kind::kMaxRows>());
    constexpr int width = kBlockVectors * kLanes;
    for (int column = 0; column < kColumns; column += width)
      functions[rows - 1](a, stride, panel + column * Kind::kPack, k, out + column, out_stride, add);
  }
}

}  // namespace millrace
