// Draws by the Gumbel-max rule as engine/sampler does in float64: the token with the highest
// score (logit - peak) / T + noise wins, of those that top_k, top_p and min_p keep.
//
// With u the token's uniform number, noise is -ln(-ln u), so the winner has the lowest
// -ln(u) / p, p = exp((logit - peak) / T). As -ln(u) >= 1 - u, a token whose (1 - u) / p is above the
// best ratio so far cannot win. That is tested in float32 for all tokens, with the first of the two
// random words; the few that pass are scored in float64. Which tokens are kept is not found
// beforehand: the winner of all is mostly kept, and where it is not, the next race is among the
// likelier ones.
//
// Whatever is closer than the error of the arithmetic stays undecided and is left to the sampler, so
// that a decided token is the sampler's own.
#include "draw.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>

#include "philox.h"

namespace millrace {

namespace {

// At most 53 ln 2 = 36.74: the highest -ln(u) there is, and the highest noise.
constexpr double kMaxExponential = 36.75;
// 1 - u in units of 2^-32 is at least its first word's complement plus this.
constexpr float kLeast = 0x1p-21f;
// More than float32 loses: p is off by 1.6e-5 at 2^-126, sums and products by less.
constexpr double kMargin = 1e-4;
// More than float64 loses in a score.
constexpr double kScoreMargin = 1e-9;
constexpr double kMinTemperature = 1e-6, kMaxTemperature = 1e6;
constexpr int kMaxRaces = 16;
// Vectors that are summed in float32 before the sum goes to float64.
constexpr long kSummed = 64;
constexpr long kBuckets = 1024;
constexpr long kMaxBucketed = kBuckets / 4;

// Calls use(first token, logits) for vectors of the row; the last is filled up with -inf.
template <class Use>
void each_vec(const float* logits, long vocab, Use&& use) {
  long first = 0;
  for (; first + kLanes <= vocab; first += kLanes) use(first, load(logits + first));
  if (first == vocab) return;
  float tail[kLanes];
  std::fill(std::copy(logits + first, logits + vocab, tail), tail + kLanes, -INFINITY);
  use(first, load(tail));
}

// The highest logit; not finite where that is, or where one is NaN.
float find_peak(const float* logits, long vocab) {
  const Vec lowest = set1(-FLT_MAX);
  Vec most = set1(-INFINITY), wrong = zero();
  each_vec(logits, vocab, [&](long, Vec x) {
    most = max(most, x);
    wrong = add(wrong, mul(max(lowest, x), zero()));
  });
  return sum(wrong) == 0.0f ? highest(most) : NAN;
}

// A value that at least `count` logits reach and few more: that many buckets have such a maximum.
// -inf where fewer buckets have any.
float bucket_floor(const float* logits, long vocab, long count, float* maxima) {
  std::copy(logits, logits + kBuckets, maxima);
  for (long start = kBuckets; start + kBuckets <= vocab; start += kBuckets)
    for (long i = 0; i < kBuckets; i += kLanes)
      store(maxima + i, max(load(maxima + i), load(logits + start + i)));
  std::nth_element(maxima, maxima + count - 1, maxima + kBuckets, std::greater<float>());
  return maxima[count - 1];
}

// The count-th highest logit, 1 <= count <= vocab.
float find_kth(const float* logits, long vocab, long count, float* scratch) {
  float* end = scratch;
  const bool is_bucketed = vocab >= 4 * kBuckets && count <= kMaxBucketed;
  const float floor = is_bucketed ? bucket_floor(logits, vocab, count, scratch) : -INFINITY;
  if (floor == -INFINITY) {
    end = std::copy(logits, logits + vocab, scratch);
  } else {
    each_vec(logits, vocab, [&](long first, Vec x) {
      if (!any_less(set1(std::nextafter(floor, -INFINITY)), x)) return;
      for (long token = first; token < std::min(first + kLanes, vocab); ++token)
        if (logits[token] >= floor) *end++ = logits[token];
    });
  }
  std::nth_element(scratch, scratch + count - 1, end, std::greater<float>());
  return scratch[count - 1];
}

// `scaled` is (logit - peak) / T.
struct Runner {
  float logit;
  double scaled;
  double score;
  long token;

  // The order of truncation.
  bool is_before(const Runner& other) const {
    return logit > other.logit || (logit == other.logit && token < other.token);
  }
};

constexpr Runner kNobody{-INFINITY, -INFINITY, -INFINITY, -1};

enum class Fate { kKept, kLeftOut, kUnclear };

class Row {
 public:
  Row(const float* logits, long vocab, const mr_draw& draw, float peak)
      : logits_(logits),
        vocab_(vocab),
        draw_(draw),
        peak_(peak),
        scale_(static_cast<float>(1.4426950408889634 / draw.temperature)),
        philox_(draw.seed, static_cast<uint32_t>(draw.position),
                static_cast<uint32_t>(draw.choice)) {}

  void keep_from(float kth) { kept_floor_ = race_floor_ = kth; }

  // Tokens that are clearly lighter than `weight` times the likeliest are left out.
  void race_from_weight(double weight) {
    const float logit = static_cast<float>(peak_ + draw_.temperature * std::log(weight));
    const float nearness = 1e-6f * (std::abs(logit) + std::abs(peak_));
    if (std::isfinite(logit)) race_floor_ = std::max(race_floor_, logit - nearness);
  }

  // Only tokens before `runner` take part in the next race.
  void leave_out_from(const Runner& runner) {
    limit_ = runner;
    race_floor_ = std::max(race_floor_, runner.logit);
  }

  // The winner; its token is -1 where the second is too close.
  Runner race() const {
    Runner best = kNobody;
    double second = -INFINITY;
    float bound = bound_of(-std::log(kMaxExponential));
    const Vec floor = set1(race_floor_), least = set1(kLeast);
    each_vec(logits_, vocab_, [&](long first, Vec x) {
      const Vec most = mul(zero_where_less(weights(x), x, floor), set1(bound));
      if (!any_less(least, most)) return;
      const Vec gaps = add(philox_.complements(first), least);
      if (!any_less(gaps, most)) return;
      alignas(64) float low[kLanes], high[kLanes];
      store(low, gaps);
      store(high, most);
      for (int i = 0; i < kLanes; ++i) {
        if (!(low[i] < high[i])) continue;
        const Runner runner = score(first + i);
        if (limit_.token >= 0 && !runner.is_before(limit_)) continue;
        second = std::max(second, std::min(best.score, runner.score));
        if (runner.score > best.score) best = runner;
      }
      bound = bound_of(std::max(best.score, -std::log(kMaxExponential)));
    });
    return best.score - second > kScoreMargin ? best : kNobody;
  }

  Fate judge(const Runner& runner) const {
    if (draw_.min_p > 0.0 && runner.scaled < 0.0) {
      const double over = runner.scaled - std::log(draw_.min_p);
      if (!(std::abs(over) > kScoreMargin)) return Fate::kUnclear;
      if (over < 0.0) return Fate::kLeftOut;
    }
    if (draw_.top_p >= 1.0) return Fate::kKept;
    const Mass mass = masses(runner);
    const double limit = draw_.top_p * mass.total;
    if (mass.before == 0.0 || mass.before * (1.0 + kMargin) < limit * (1.0 - kMargin))
      return Fate::kKept;
    return mass.before * (1.0 - kMargin) > limit * (1.0 + kMargin) ? Fate::kLeftOut
                                                                    : Fate::kUnclear;
  }

 private:
  struct Mass {
    double total = 0.0;
    double before = 0.0;
  };

  Vec weights(Vec x) const { return exp2(mul(sub(x, set1(peak_)), set1(scale_))); }

  static float bound_of(double score) {
    return static_cast<float>(std::exp(-score) * 0x1p32 * (1.0 + kMargin));
  }

  Runner score(long token) const {
    const double k = static_cast<double>(philox_.words(static_cast<uint32_t>(token)) >> 12);
    const double scaled = (static_cast<double>(logits_[token]) - peak_) / draw_.temperature;
    const double score = scaled - std::log(-std::log((k + 0.5) * 0x1p-52));
    return {logits_[token], scaled, score, token};
  }

  // The mass that top_k left, and how much of it comes before `runner`.
  Mass masses(const Runner& runner) const {
    const Vec floor = set1(kept_floor_), logit = set1(runner.logit);
    Mass mass;
    Vec total = zero(), before = zero();
    const auto flush = [&] {
      mass.total += sum(total);
      mass.before += sum(before);
      total = before = zero();
    };
    long ties = 0;
    each_vec(logits_, vocab_, [&](long first, Vec x) {
      const Vec p = zero_where_less(weights(x), x, floor);
      const Vec not_above = zero_where_less(p, logit, x);
      total = add(total, p);
      before = add(before, sub(p, not_above));
      if (first < runner.token && any_less(zero(), zero_where_less(not_above, x, logit)))
        ties += std::count(logits_ + first, logits_ + std::min(first + kLanes, runner.token),
                           runner.logit);
      if (first / kLanes % kSummed == kSummed - 1) flush();
    });
    flush();
    mass.before += ties * std::exp(runner.scaled);
    return mass;
  }

  const float* const logits_;
  const long vocab_;
  const mr_draw& draw_;
  const float peak_, scale_;
  const Philox philox_;
  float kept_floor_ = -INFINITY, race_floor_ = -INFINITY;
  Runner limit_ = kNobody;
};

}  // namespace

int64_t draw_token(const float* logits, long vocab, const mr_draw& draw, float* scratch) {
  const float peak = find_peak(logits, vocab);
  const bool is_plain = draw.temperature >= kMinTemperature && draw.temperature <= kMaxTemperature;
  if (!std::isfinite(peak) || !is_plain) return kUndecided;
  Row row(logits, vocab, draw, peak);
  if (draw.top_k > 0 && draw.top_k < vocab)
    row.keep_from(find_kth(logits, vocab, draw.top_k, scratch));
  if (draw.min_p > 0.0) row.race_from_weight(draw.min_p);
  for (int races = 0; races < kMaxRaces; ++races) {
    const Runner winner = row.race();
    const Fate fate = winner.token < 0 ? Fate::kUnclear : row.judge(winner);
    if (fate == Fate::kKept) return winner.token;
    if (fate == Fate::kUnclear) return kUndecided;
    row.leave_out_from(winner);
  }
  return kUndecided;
}

}  // namespace millrace
