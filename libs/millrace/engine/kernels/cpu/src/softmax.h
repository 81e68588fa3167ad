// The softmax of one query row over a piece of keys.
#pragma once

#include <algorithm>

#include "attention_plan.h"
#include "lanes.h"
#include "partial.h"

namespace millrace {

// The keys of a piece that a row sees are [begin, end) of `count`; the rest is padding to whole tiles
// and keys that only other rows see.
struct SeenKeys {
  long begin;
  long end;
  long count;

  bool has_any() const { return std::max(begin, 0L) < end; }

  // Calls edge(i) for the vectors of keys that are not all seen, full(i) for the others; all of them
  // are edge vectors where `is_plain` is false.
  template <class Edge, class Full>
  void each(bool is_plain, Edge&& edge, Full&& full) const {
    const long from = std::clamp((begin + kLanes - 1) / kLanes * kLanes, 0L, count);
    const long to = is_plain ? std::max(from, end / kLanes * kLanes) : from;
    for (long i = from; i < to; i += kLanes) full(i);
    for (long i = 0; i < from; i += kLanes) edge(i);
    for (long i = to; i < count; i += kLanes) edge(i);
  }
};

// Of the K/V of a piece, side by side; only int8 has them.
struct KvScales {
  alignas(64) float keys[kPieceTokens];
  alignas(64) float values[kPieceTokens];
};

// `products` of the row with the keys lack `unit`, and with `kHasScales` each key's scale. Scores are
// computed twice rather than stored, which would take longer; those that are masked or capped are
// stored.
template <bool kHasScales>
class RowSoftmax {
 public:
  RowSoftmax(float* products, const SeenKeys& seen, const KvScales& scales, float unit,
             float softcap)
      : products_(products),
        seen_(seen),
        scales_(scales),
        is_capped_(softcap > 0.0f),
        factor_(set1(is_capped_ ? unit / softcap : unit * kLog2e)),
        cap_(set1(softcap * kLog2e)) {}

  // The highest score in base 2, kMasked where the row sees no key.
  float highest_score() const {
    Vec most = set1(kMasked);
    const auto hide = [&](long i) {
      store(products_ + i, score(i));
      for (long key = i; key < i + kLanes; ++key)
        if (key < seen_.begin || key >= seen_.end) products_[key] = kMasked;
      most = max(most, load(products_ + i));
    };
    seen_.each(!is_capped_, hide, [&](long i) { most = max(most, score(i)); });
    return highest(most);
  }

  // Calls use(i, weights) for the vectors of keys: 2^(score - top); returns their sum.
  template <class Use>
  float each_weight(float top, Use&& use) const {
    Vec total = zero();
    const auto weigh = [&](long i, Vec score) {
      const Vec weight = exp2(sub(score, set1(top)));
      total = add(total, weight);
      use(i, kHasScales ? mul(weight, load(scales_.values + i)) : weight);
    };
    seen_.each(!is_capped_, [&](long i) { weigh(i, load(products_ + i)); },
               [&](long i) { weigh(i, score(i)); });
    return sum(total);
  }

 private:
  Vec score(long i) const {
    Vec x = mul(load(products_ + i), factor_);
    if constexpr (kHasScales) x = mul(x, load(scales_.keys + i));
    return is_capped_ ? mul(tanh(x), cap_) : x;
  }

  float* const products_;
  const SeenKeys seen_;
  const KvScales& scales_;
  const bool is_capped_;
  const Vec factor_;
  const Vec cap_;
};

}  // namespace millrace
