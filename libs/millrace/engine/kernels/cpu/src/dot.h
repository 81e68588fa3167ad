// The one inner loop: a few rows of input times one panel of 32 columns.
//
// Every output is one accumulator that takes its products in the order of K, whatever the number of
// rows. A token's numbers are therefore the same alone, in a batch, in a prefill and in a decode
// step.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "ahead.h"
#include "kinds.h"
#include "tiles.h"

namespace millrace {

// Adds a stretch of `k` products to the sums of R rows by N vectors of a panel.
template <class Kind>
struct Products;

template <>
struct Products<F32> {
  template <int R, int N>
  static inline void add(Vec (&sums)[R][N], const float* a, long stride, const float* b, long k,
                         long ahead) {
    for (long i = 0; i < k; ++i) {
      fetch_ahead<N * kLanes * sizeof(float)>(b + i * kColumns, ahead);
      Vec column[N];
      for (int n = 0; n < N; ++n) column[n] = load(b + i * kColumns + n * kLanes);
      for (int r = 0; r < R; ++r) {
        const Vec x = set1(a[r * stride + i]);
        for (int n = 0; n < N; ++n) sums[r][n] = fma(x, column[n], sums[r][n]);
      }
    }
  }
};

#if !defined(__AVX512BF16__)
template <>
struct Products<Bf16> {
  template <int R, int N>
  static inline void add(Vec (&sums)[R][N], const float* a, long stride, const bf16* b, long k,
                         long ahead) {
    for (long i = 0; i < k; i += 2) {
      fetch_ahead<N * kLanes * 2 * sizeof(bf16)>(b + i * kColumns, ahead);
      Vec even[N], odd[N];
      for (int n = 0; n < N; ++n)
        load_pairs(b + i * kColumns + n * kLanes * 2, even[n], odd[n]);
      for (int r = 0; r < R; ++r) {
        const Vec x = set1(a[r * stride + i]), y = set1(a[r * stride + i + 1]);
        for (int n = 0; n < N; ++n) sums[r][n] = fma(y, odd[n], fma(x, even[n], sums[r][n]));
      }
    }
  }
};
#elif !defined(MILLRACE_AMX)
template <>
struct Products<Bf16> {
  template <int R, int N>
  static inline void add(Vec (&sums)[R][N], const bf16* a, long stride, const bf16* b, long k,
                         long ahead) {
    for (long i = 0; i < k; i += 2) {
      fetch_ahead<N * kLanes * 2 * sizeof(bf16)>(b + i * kColumns, ahead);
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
  }
};
#endif

// R rows times N vectors of a matrix whose K is `num_parts` stretches of `k`, from `column` on.
template <class Kind, int R, int N>
struct Block {
  static void run(const typename Kind::Input* a, long stride,
                  const Part<typename Kind::Weight>* parts, long num_parts, long k, int column,
                  float* out, long out_stride) {
    Vec sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sums[r][n] = zero();
    for (long part = 0; part < num_parts; ++part)
      Products<Kind>::add(sums, a + part * k, stride, parts[part].panel + column * Kind::kPack, k,
                          parts[part].ahead);
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};

// The sum of each group of a row of integers.
struct GroupSums {
  const int32_t* data;
  long stride;
};

// out[rows][32] = a[rows][k] * panel[k][32], for up to Kind::kMaxRows rows of integers.
template <class Kind>
void dot_groups(const typename Kind::Input* a, long stride, const GroupSums& input_sums, int rows,
                const uint8_t* panel, long k, float* out, long out_stride, long ahead);

#if !defined(MILLRACE_AMX)

#if defined(__AVX512VNNI__)
using IntVec = __m512i;
using Bytes = __m512i;
inline IntVec int_set1(int32_t x) { return _mm512_set1_epi32(x); }
inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
inline IntVec as_weights(Bytes x) { return x; }
inline IntVec load_input(const int8_t* p) {
  int four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
inline IntVec multiply_add(IntVec sum, IntVec weights, IntVec input) {
  return _mm512_dpbusd_epi32(sum, weights, input);
}
inline IntVec times_256_plus(IntVec a, IntVec b) {
  return _mm512_add_epi32(_mm512_slli_epi32(a, 8), b);
}
inline Vec to_floats(IntVec x) { return _mm512_cvtepi32_ps(x); }
#elif defined(__ARM_FEATURE_DOTPROD)
using IntVec = int32x4_t;
using Bytes = uint8x16_t;
inline IntVec int_set1(int32_t x) { return vdupq_n_s32(x); }
inline Bytes load_bytes(const uint8_t* p) { return vld1q_u8(p); }
inline Bytes low_nibbles(Bytes x) { return vandq_u8(x, vdupq_n_u8(15)); }
inline Bytes high_nibbles(Bytes x) { return vshrq_n_u8(x, 4); }
inline IntVec as_weights(Bytes x) { return vreinterpretq_s32_u8(x); }
inline IntVec load_input(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vdupq_n_s32(four);
}
inline IntVec multiply_add(IntVec sum, IntVec weights, IntVec input) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(input));
}
inline IntVec times_256_plus(IntVec a, IntVec b) { return vaddq_s32(vshlq_n_s32(a, 8), b); }
inline Vec to_floats(IntVec x) { return vcvtq_f32_s32(x); }
#elif defined(__AVX2__)
using IntVec = __m256i;
using Bytes = __m128i;
inline IntVec int_set1(int32_t x) { return _mm256_set1_epi32(x); }
inline Bytes load_bytes(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline Bytes low_nibbles(Bytes x) { return _mm_and_si128(x, _mm_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes x) { return low_nibbles(_mm_srli_epi16(x, 4)); }
inline IntVec as_weights(Bytes x) { return _mm256_cvtepi8_epi16(x); }
inline IntVec load_input(const int16_t* p) {
  int both;
  std::memcpy(&both, p, sizeof both);
  return _mm256_set1_epi32(both);
}
inline IntVec multiply_add(IntVec sum, IntVec weights, IntVec input) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, input));
  // Or gcc makes trees of the additions and runs out of registers.
  asm("" : "+x"(sum));
  return sum;
}
inline Vec to_floats(IntVec x) { return _mm256_cvtepi32_ps(x); }
#else
using IntVec = int32x4_t;
using Bytes = uint8x8_t;
inline IntVec int_set1(int32_t x) { return vdupq_n_s32(x); }
inline Bytes load_bytes(const uint8_t* p) { return vld1_u8(p); }
inline Bytes low_nibbles(Bytes x) { return vand_u8(x, vdup_n_u8(15)); }
inline Bytes high_nibbles(Bytes x) { return vshr_n_u8(x, 4); }
// Pairs of numbers in the halves: the first of each pair, then the second.
inline IntVec as_weights(Bytes x) {
  const int16x8_t pairs = vmovl_s8(vreinterpret_s8_u8(x));
  const int16x4_t low = vget_low_s16(pairs), high = vget_high_s16(pairs);
  return vreinterpretq_s32_s16(vcombine_s16(vuzp1_s16(low, high), vuzp2_s16(low, high)));
}
inline IntVec load_input(const int16_t* p) {
  return vreinterpretq_s32_s16(vcombine_s16(vdup_n_s16(p[0]), vdup_n_s16(p[1])));
}
inline IntVec multiply_add(IntVec sum, IntVec weights, IntVec input) {
  const int16x8_t w = vreinterpretq_s16_s32(weights), x = vreinterpretq_s16_s32(input);
  sum = vmlal_s16(sum, vget_low_s16(w), vget_low_s16(x));
  return vmlal_s16(sum, vget_high_s16(w), vget_high_s16(x));
}
inline Vec to_floats(IntVec x) { return vcvtq_f32_s32(x); }
#endif

// Inputs of integers lie in two bytes, all high ones of a stretch first, or in one number of 16 bits.
constexpr bool kHasBytes = Int8::kPack == 4;

// The numbers of a pack: whole bytes, or the low (part 0) or high halves of bytes.
template <class Kind>
inline IntVec numbers_of(Bytes bytes, int part) {
  if constexpr (Kind::kNumbersPerByte == 1)
    return as_weights(bytes);
  else
    return as_weights(part == 0 ? low_nibbles(bytes) : high_nibbles(bytes));
}

// Adds the products of one group of K.
template <class Kind, bool fetches, int R, int N>
inline void add_integers(IntVec (&totals)[R][N], const Int8::Input* inputs, long stride,
                         const uint8_t* weights, long ahead) {
  constexpr long vector_bytes = kLanes * Kind::kPack, row_bytes = kColumns * Kind::kPack;
  constexpr long num_parts = Kind::kNumbersPerByte;
  // Unrolled, or gcc copies every sum twice a step.
#pragma GCC unroll 16
  for (long i = 0; i < Kind::kGroup / Kind::kPack / num_parts; ++i) {
    if constexpr (fetches) fetch_ahead<N * vector_bytes>(weights + i * row_bytes, ahead);
    Bytes bytes[N];
    for (int n = 0; n < N; ++n) bytes[n] = load_bytes(weights + i * row_bytes + n * vector_bytes);
#pragma GCC unroll 2
    for (long part = 0; part < num_parts; ++part) {
      IntVec column[N];
      for (int n = 0; n < N; ++n) column[n] = numbers_of<Kind>(bytes[n], part);
      for (int r = 0; r < R; ++r) {
        const IntVec x = load_input(inputs + r * stride + (i * num_parts + part) * Kind::kPack);
        for (int n = 0; n < N; ++n) totals[r][n] = multiply_add(totals[r][n], column[n], x);
      }
    }
  }
}

// Between the products of high bytes and those of low ones; what the offset of the weights adds goes
// off here.
template <class Kind, int R, int N>
inline void end_high_bytes(IntVec (&totals)[R][N], const int32_t* input_sums, long stride) {
  for (int r = 0; r < R; ++r) {
    const IntVec offset = int_set1(-Kind::kWeightOffset * input_sums[r * stride]);
    for (int n = 0; n < N; ++n) totals[r][n] = times_256_plus(totals[r][n], offset);
  }
}

// Exact sums of one group after another, each scaled and added to the row's float.
template <class Kind, int R, int N>
struct GroupedBlock {
  using Input = typename Kind::Input;
  static constexpr long kInputsPerGroup = Kind::kGroup * (kHasBytes ? 2 : 1);

  static void run(const Input* a, long stride, const GroupSums& input_sums, const uint8_t* b,
                  long k, int first_column, float* out, long out_stride, long ahead) {
    Vec sums[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sums[r][n] = zero();
    for (long group = 0; group < k / Kind::kGroup; ++group) {
      const uint8_t* record = b + group * Kind::kGroupBytes;
      const uint8_t* weights = record + first_column * Kind::kPack;
      const auto* scales =
          reinterpret_cast<const bf16*>(record + Kind::kGroupWeightBytes) + first_column;
      const int32_t* group_sums = input_sums.data + group;
      const Input* inputs = a + group * kInputsPerGroup;
      IntVec totals[R][N];
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) totals[r][n] = int_set1(0);
      add_integers<Kind, true>(totals, inputs, stride, weights, ahead);
      fetch_ahead<Kind::kGroupBytes - Kind::kGroupWeightBytes>(scales, ahead);
      if constexpr (kHasBytes) {
        end_high_bytes<Kind>(totals, group_sums, input_sums.stride);
        add_integers<Kind, false>(totals, inputs + Kind::kGroup, stride, weights, 0);
      }
      for (int n = 0; n < N; ++n) {
        const Vec scale = load(scales + n * kLanes);
        for (int r = 0; r < R; ++r) sums[r][n] = fma(to_floats(totals[r][n]), scale, sums[r][n]);
      }
      if constexpr (Kind::kHasLeast) {
        for (int n = 0; n < N; ++n) {
          const Vec least = load(scales + kColumns + n * kLanes);
          for (int r = 0; r < R; ++r) {
            const Vec input = set1(static_cast<float>(group_sums[r * input_sums.stride]));
            sums[r][n] = fma(input, least, sums[r][n]);
          }
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(out + r * out_stride + n * kLanes, sums[r][n]);
  }
};

// The same over K/V, whose scales are not its business: exact sums as floats. High bytes fill the
// first half of a row of inputs, low bytes the second; `input_sums` has one number per row.
template <int R, int N>
struct Int8KvBlock {
  static void run(const Int8::Input* a, long stride, const int32_t* input_sums,
                  const Part<uint8_t>* parts, long num_parts, long k, int column, float* out,
                  long out_stride) {
    IntVec totals[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) totals[r][n] = int_set1(0);
    add<true>(totals, a, stride, parts, num_parts, k, column);
    if constexpr (kHasBytes) {
      end_high_bytes<Int8>(totals, input_sums, 1);
      add<false>(totals, a + stride / 2, stride, parts, num_parts, k, column);
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n)
        store(out + r * out_stride + n * kLanes, to_floats(totals[r][n]));
  }

 private:
  template <bool fetches>
  static inline void add(IntVec (&totals)[R][N], const Int8::Input* a, long stride,
                         const Part<uint8_t>* parts, long num_parts, long k, int column) {
    for (long part = 0; part < num_parts; ++part)
      for (long i = 0; i < k; i += Int8::kGroup)
        add_integers<Int8, fetches>(totals, a + part * k + i, stride,
                                    parts[part].panel + i * kColumns + column * Int8::kPack,
                                    parts[part].ahead);
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
using BlockFunction = void (*)(const typename Kind::Input*, long,
                               const Part<typename Kind::Weight>*, long, long, int, float*, long);

template <class Kind, int... R>
constexpr std::array<BlockFunction<Kind>, sizeof...(R)> block_functions(
    std::integer_sequence<int, R...>) {
  return {&Block<Kind, R + 1, kBlockVectors>::run...};
}

// out[rows][32] = a[rows][num_parts * k] * the panels of `parts`, [k][32] each, for up to
// Kind::kMaxRows rows of F32 or Bf16.
template <class Kind>
inline void dot(const typename Kind::Input* a, long stride, int rows,
                const Part<typename Kind::Weight>* parts, long num_parts, long k, float* out,
                long out_stride) {
#if defined(MILLRACE_AMX)
  if constexpr (std::is_same_v<Kind, Bf16>) {
    dot_tiles(a, stride, rows, parts, num_parts, k, out, out_stride);
    return;
  } else
#endif
  {
    static constexpr auto functions =
        block_functions<Kind>(std::make_integer_sequence<int, Kind::kMaxRows>());
    constexpr int width = kBlockVectors * kLanes;
    for (int column = 0; column < kColumns; column += width)
      functions[rows - 1](a, stride, parts, num_parts, k, column, out + column, out_stride);
  }
}

#if defined(MILLRACE_AMX)

// Each column's number twice: its two numbers of a pair lie side by side.
inline void put_pairs(const bf16* from, float (&to)[2 * kColumns]) {
  for (int column = 0; column < kColumns; ++column)
    to[2 * column] = to[2 * column + 1] = to_float(from[column]);
}

// One panel of Int8 or Int4 as a panel of Bf16.
template <class Kind>
inline void widen_panel(const uint8_t* panel, long k, bf16* wide) {
  constexpr long row = 2 * kColumns;  // numbers of a pack
  for (long group = 0; group < k / Kind::kGroup; ++group) {
    const uint8_t* record = panel + group * Kind::kGroupBytes;
    const auto* scales = reinterpret_cast<const bf16*>(record + Kind::kGroupWeightBytes);
    alignas(64) float steps[row], least[row] = {};
    put_pairs(scales, steps);
    if constexpr (Kind::kHasLeast) put_pairs(scales + kColumns, least);
    for (long i = 0; i < Kind::kGroup / 2; ++i) {
      alignas(64) int8_t numbers[row];
      const uint8_t* bytes = record + i / Kind::kNumbersPerByte * row;
      for (int n = 0; n < row; ++n) {
        if constexpr (Kind::kNumbersPerByte == 1)
          numbers[n] = static_cast<int8_t>(bytes[n]);
        else
          numbers[n] = i % 2 == 0 ? bytes[n] & 15 : bytes[n] >> 4;
      }
      for (int n = 0; n < row; n += kLanes)
        store(wide + (group * Kind::kGroup / 2 + i) * row + n,
              fma(load(numbers + n), load(steps + n), load(least + n)));
    }
  }
}

#else

template <class Kind, int... R>
constexpr auto grouped_functions(std::integer_sequence<int, R...>) {
  return std::array{&GroupedBlock<Kind, R + 1, kBlockVectors>::run...};
}

template <class Kind>
inline void dot_groups(const typename Kind::Input* a, long stride, const GroupSums& input_sums,
                       int rows, const uint8_t* panel, long k, float* out, long out_stride,
                       long ahead) {
  static constexpr auto functions =
      grouped_functions<Kind>(std::make_integer_sequence<int, Kind::kMaxRows>());
  constexpr int width = kBlockVectors * kLanes;
  for (int column = 0; column < kColumns; column += width)
    functions[rows - 1](a, stride, input_sums, panel, k, column, out + column, out_stride, ahead);
}

template <int... R>
constexpr auto int8_kv_functions(std::integer_sequence<int, R...>) {
  return std::array{&Int8KvBlock<R + 1, kBlockVectors>::run...};
}

// The same as `dot` for up to Int8Kv::kMaxRows rows of integers.
inline void dot_int8_kv(const Int8Kv::Input* a, long stride, const int32_t* input_sums, int rows,
                        const Part<uint8_t>* parts, long num_parts, long k, float* out,
                        long out_stride) {
  static constexpr auto functions =
      int8_kv_functions(std::make_integer_sequence<int, Int8Kv::kMaxRows>());
  constexpr int width = kBlockVectors * kLanes;
  for (int column = 0; column < kColumns; column += width)
    functions[rows - 1](a, stride, input_sums, parts, num_parts, k, column, out + column,
                        out_stride);
}

#endif

}  // namespace millrace
