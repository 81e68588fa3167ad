// Philox4x32-10 as the sampler uses it (engine/sampler/philox.py): the counter is (position, choice,
// token, 0), the key is the seed with its low word first.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace millrace {

class Philox {
 public:
  Philox(uint64_t seed, uint32_t position, uint32_t choice) : choice_(choice) {
    for (uint32_t i = 0; i < kRounds; ++i) {
      keys_[i][0] = static_cast<uint32_t>(seed) + i * 0x9E3779B9u;
      keys_[i][1] = static_cast<uint32_t>(seed >> 32) + i * 0xBB67AE85u;
    }
    const uint64_t product = kMultiplier0 * position;
    word2_ = static_cast<uint32_t>(product >> 32) ^ keys_[0][1];
    word3_ = static_cast<uint32_t>(product);
    uint64_t even[kLanes / 2];
    for (int i = 0; i < kLanes / 2; ++i) even[i] = kMultiplier1 * (2 * i);
    even_ = load(even);
    for (int i = 0; i < kRounds; ++i)
      for (int word = 0; word < 2; ++word) wide_keys_[i][word] = set1_words(keys_[i][word]);
    wide_keys_[kRounds - 1][0] = set1_words(~keys_[kRounds - 1][0]);
  }

  // Words 0 and 1 of a token's block, word 0 in the upper half.
  uint64_t words(uint32_t token) const {
    const uint64_t start = kMultiplier1 * token;
    uint32_t c0 = static_cast<uint32_t>(start >> 32) ^ choice_ ^ keys_[0][0];
    uint32_t c1 = static_cast<uint32_t>(start), c2 = word2_, c3 = word3_;
    for (int i = 1; i < kRounds; ++i) {
      const uint64_t p0 = kMultiplier0 * c0, p1 = kMultiplier1 * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ keys_[i][0];
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ keys_[i][1];
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
    }
    return static_cast<uint64_t>(c0) << 32 | c1;
  }

  // 2^32 - 1 - word 0 of the blocks of `kLanes` tokens from `first` on, rounded to float.
  Vec complements(long first) const {
    const Words even = add(even_, set1_words(kMultiplier1 * first));
    const Words odd = add(even, set1_words(kMultiplier1));
    return low_halves(complement(even), complement(odd));
  }

 private:
  static constexpr int kRounds = 10;
  static constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;

  // From the second multiplier times the tokens; only the low halves of words count.
  Words complement(Words c1) const {
    const Words m0 = set1_words(kMultiplier0), m1 = set1_words(kMultiplier1);
    Words c0 = xor3(high_half(c1), set1_words(choice_), wide_keys_[0][0]);
    Words c2 = set1_words(word2_), c3 = set1_words(word3_);
    for (int i = 1; i < kRounds - 1; ++i) {
      const Words p0 = multiply_low(c0, m0), p1 = multiply_low(c2, m1);
      c0 = xor3(high_half(p1), c1, wide_keys_[i][0]);
      c2 = xor3(high_half(p0), c3, wide_keys_[i][1]);
      c1 = p1;
      c3 = p0;
    }
    return xor3(high_half(multiply_low(c2, m1)), c1, wide_keys_[kRounds - 1][0]);
  }

  uint32_t keys_[kRounds][2];
  uint32_t choice_, word2_, word3_;  // words 2 and 3 after the first round
  Words even_;
  Words wide_keys_[kRounds][2];  // the last one of word 0 inverted
};

}  // namespace millrace
