// Paged attention of a flattened batch, prefill and decode rows alike.
//
// A piece of keys is softmaxed by itself and merged into the row's result in order. A row's result
// depends on its own keys alone: not on the other rows of its item, and not on which members took
// the pieces (attention_plan.h).
//
// Memory is read ahead by half a piece: while the keys of a tile are multiplied its values are
// fetched, and then the keys of the next piece: some tiles while weights are computed, so that memory
// does not rest then, the others while values are multiplied.
#pragma once

#include <algorithm>

#include "attention_plan.h"
#include "matmul.h"
#include "partial.h"
#include "softmax.h"

namespace millrace {

// So many tiles of the next piece are fetched while weights are computed, one with each row.
constexpr long kTilesFetchedByWeights = 3;

// Query rows: those of a token begin at token * stride, [heads][key dim] each.
struct Queries {
  const float* data;
  long stride;
};

// The attention of one layer: queries in `Kind`'s input numbers, K/V stored as `Element`.
template <class Kind, class Element>
class Attention {
  using Input = typename Kind::Input;
  using Weight = typename Kind::Weight;
  using Tile = KvTile<Kind, Element>;

  static constexpr bool kHasScales = std::is_same_v<Element, int8_t>;
  // K/V of 8 bits that are multiplied as such have inputs of two bytes each, or of 16 bits.
  static constexpr long kInputsPerNumber =
      kTakesIntegers<Kind> ? 2 / static_cast<long>(sizeof(Input)) : 1;
  // K/V of 8 bits where only wider numbers can be multiplied.
  static constexpr bool kWidens = kHasScales && !kTakesIntegers<Kind>;

 public:
  // Memory for one member; made before the step, so that nothing is allocated inside it.
  struct Scratch {
    Buffer<Input> queries, weights;
    Buffer<float> scores, padded, piece_values, values;
    Buffer<Weight> keys_widened, values_widened;
    float piece_highest[kMaxTileRows], piece_sums[kMaxTileRows];
    float highest[kMaxTileRows], sums[kMaxTileRows];
    float query_scales[kMaxTileRows], weight_scales[Kind::kMaxRows];
    int32_t query_sums[kMaxTileRows], weight_sums[Kind::kMaxRows];

    void reserve(long key_dim, long value_dim) {
      queries.reserve(kMaxTileRows * pad_dim(key_dim) * kInputsPerNumber);
      weights.reserve(Kind::kMaxRows * kPieceTokens * kInputsPerNumber);
      scores.reserve(Kind::kMaxRows * kPieceTokens);
      padded.reserve(pad_dim(key_dim));
      piece_values.reserve(kMaxTileRows * pad_dim(value_dim));
      values.reserve(kMaxTileRows * pad_dim(value_dim));
      if (!kWidens) return;
      keys_widened.reserve(kPieceTokens * pad_dim(key_dim));
      values_widened.reserve(kPieceTokens * pad_dim(value_dim));
    }
  };

  Attention(const mr_kv& kv, const mr_attention& how, const mr_batch& batch)
      : kv_(kv),
        how_(how),
        batch_(batch),
        group_(how.num_heads / kv.num_kv_heads),
        key_dim_(pad_dim(kv.key_dim)),
        value_dim_(pad_dim(kv.value_dim)),
        // Sums of products of 8 and 16 bits must fit into 32.
        query_limit_(std::min(Int8::kInputLimit,
                              static_cast<float>(0x7fffff00 / 128 / key_dim_))) {}

  // Floats that one row of partial results takes.
  static long partial_floats(long value_dim) { return pad_dim(value_dim) + 2; }

  // use(token, head, float values[padded value dim]) takes results; `next` is what this member does
  // after it, or null.
  template <class Use>
  void run(const AttentionItem& item, const AttentionItem* next, const Queries& from,
           Scratch& scratch, float* partials, Use&& use) const {
    const long rows = item.num_tokens * group_;
    const Rows<Kind> queries{scratch.queries.data(), key_dim_ * kInputsPerNumber,
                             scratch.query_scales, scratch.query_sums, 1};
    put_queries(item, from, queries, scratch.padded.data());
    Piece piece, after;
    find(item, item.first_piece, piece);
    const bool is_part = item.partial >= 0;
    const Partial whole{scratch.values.data(), scratch.highest, scratch.sums};
    const Partial part{scratch.piece_values.data(), scratch.piece_highest, scratch.piece_sums};
    for (long number = item.first_piece; number < item.end_piece; ++number) {
      after.num_tiles = 0;
      if (number + 1 < item.end_piece)
        find(item, number + 1, after);
      else if (next != nullptr)
        find(*next, next->first_piece, after);
      const bool is_first = number == item.first_piece;
      run_piece(item, piece, after, queries, rows, scratch,
                is_part ? partial(partials, item.partial, rows) : is_first ? whole : part);
      if (!is_first) whole.merge(part, rows, value_dim_);
      std::swap(piece, after);
    }
    if (!is_part) finish(item, whole, rows, use);
  }

  // Puts the pieces of a split item together.
  template <class Use>
  void run_merge(const AttentionItem& item, Scratch& scratch, float* partials, Use&& use) const {
    const long rows = item.num_tokens * group_;
    const Partial whole{scratch.values.data(), scratch.highest, scratch.sums};
    whole.clear(rows, value_dim_);
    for (long number = 0; number < item.end_piece - item.first_piece; ++number)
      whole.merge(partial(partials, item.partial + number * rows, rows), rows, value_dim_);
    finish(item, whole, rows, use);
  }

 private:
  struct Piece {
    long first_key;
    long num_tiles = 0;
    Tile tiles[kPieceTiles];
  };

  // What one run of rows multiplies a piece with.
  struct Panels {
    Part<Weight> keys[kPieceTiles];
    const Weight* values[kPieceTiles];
    long values_ahead[kPieceTiles];
  };

  Partial partial(float* partials, long first_row, long rows) const {
    float* base = partials + first_row * partial_floats(kv_.value_dim);
    return {base, base + rows * value_dim_, base + rows * (value_dim_ + 1)};
  }

  void put_queries(const AttentionItem& item, const Queries& from, const Rows<Kind>& queries,
                   float* padded) const {
    std::fill(padded + kv_.key_dim, padded + key_dim_, 0.0f);
    for (long row = 0; row < item.num_tokens * group_; ++row) {
      const long token = item.first_token + row / group_;
      const long head = item.kv_head * group_ + row % group_;
      std::memcpy(padded, from.data + token * from.stride + head * kv_.key_dim,
                  kv_.key_dim * sizeof(float));
      if constexpr (kTakesIntegers<Kind>)
        put_row(queries, row, padded, key_dim_, highest_magnitude(padded, key_dim_), query_limit_);
      else
        put(queries.data + row * queries.stride, padded, key_dim_);
    }
  }

  // A row of integers whose largest magnitude is `most`; its place is taken by `limit`. Low bytes
  // fill the second half of the row, whatever the count.
  static void put_row(const Rows<Kind>& rows, long row, const float* from, long count, float most,
                      float limit) {
    Input* high = rows.data + row * rows.stride;
    const float sum =
        put_integers(from, count, inverse_step(most, limit), high, high + rows.stride / 2);
    rows.sums[row] = to_integer(sum);
    rows.scales[row] = scale_of(most, limit, sum);
  }

  void find(const AttentionItem& item, long number, Piece& piece) const {
    const long first_tile = number * kPieceTiles;
    const long last_position = batch_.positions.data[item.first_token + item.num_tokens - 1];
    piece.first_key = first_tile * kTileTokens;
    piece.num_tiles = std::min(kPieceTiles, last_position / kTileTokens + 1 - first_tile);
    for (long t = 0; t < piece.num_tiles; ++t)
      piece.tiles[t] = Tile(kv_, tile_of(batch_, item.row, (first_tile + t) * kTileTokens),
                            item.kv_head);
  }

  void run_piece(const AttentionItem& item, const Piece& piece, const Piece& after,
                 const Rows<Kind>& queries, long rows, Scratch& scratch, const Partial& out) const {
    const long fetched = std::min({kTilesFetchedByWeights, rows, after.num_tiles});
    Panels panels = panels_of(piece, after, fetched, scratch);
    KvScales scales;
    if constexpr (kHasScales) gather_scales(piece, after, scales);
    const Rows<Kind> weights{scratch.weights.data(), kPieceTokens * kInputsPerNumber,
                             scratch.weight_scales, scratch.weight_sums, 1};
    for (long first = 0; first < rows; first += Kind::kMaxRows) {
      const int height = static_cast<int>(std::min<long>(Kind::kMaxRows, rows - first));
      if (first == Kind::kMaxRows) stop_fetching(panels);
      float* scores = scratch.scores.data();
      for (long t = 0; t < piece.num_tiles; ++t)
        dot_rows(queries, first, height, panels.keys + t, 1, key_dim_, scores + t * kTileTokens,
                 kPieceTokens);
      for (long row = 0; row < height; ++row)
        weigh(item, piece, scales, first + row, row, queries, weights, scores + row * kPieceTokens,
              first + row < fetched ? after.tiles[row].keys : nullptr, out);
      sum_values(panels, piece.num_tiles, weights, height, out.values + first * value_dim_);
    }
  }

  // `fetched` tiles of the next piece need not be fetched while values are multiplied.
  Panels panels_of(const Piece& piece, const Piece& after, long fetched, Scratch& scratch) const {
    Panels panels;
    for (long t = 0; t < piece.num_tiles; ++t) {
      const Tile& tile = piece.tiles[t];
      if constexpr (kWidens) {
        panels.keys[t] = {widen(tile.keys, key_dim_, t, scratch.keys_widened.data()), 0};
        panels.values[t] = widen(tile.values, value_dim_, t, scratch.values_widened.data());
        panels.values_ahead[t] = 0;
      } else {
        panels.keys[t] = {reinterpret_cast<const Weight*>(tile.keys),
                          distance(tile.keys, tile.values)};
        panels.values[t] = reinterpret_cast<const Weight*>(tile.values);
        panels.values_ahead[t] =
            t >= fetched && t < after.num_tiles ? distance(tile.values, after.tiles[t].keys) : 0;
      }
    }
    return panels;
  }

  static void stop_fetching(Panels& panels) {
    for (long t = 0; t < kPieceTiles; ++t) panels.keys[t].ahead = panels.values_ahead[t] = 0;
  }

  static void gather_scales(const Piece& piece, const Piece& after, KvScales& scales) {
    constexpr long bytes = kTileTokens * sizeof(float);
    for (long t = 0; t < after.num_tiles; ++t) fetch_ahead<2 * bytes>(after.tiles[t].key_scales, 0);
    for (long t = 0; t < piece.num_tiles; ++t) {
      std::memcpy(scales.keys + t * kTileTokens, piece.tiles[t].key_scales, bytes);
      std::memcpy(scales.values + t * kTileTokens, piece.tiles[t].value_scales, bytes);
    }
  }

  static const Weight* widen(const Element* stored, long dim, long tile, Weight* room) {
    Weight* to = room + tile * dim * kTileTokens;
    for (long i = 0; i < dim * kTileTokens; i += kLanes) store(to + i, load(stored + i));
    return to;
  }

  // Products of row `row` of the item with the keys → its weights, at `place`. Fetches the keys of the
  // tile `next` meanwhile, unless it is null.
  void weigh(const AttentionItem& item, const Piece& piece, const KvScales& scales, long row,
             long place, const Rows<Kind>& queries, const Rows<Kind>& weights, float* products,
             const Element* next, const Partial& out) const {
    const long position = batch_.positions.data[item.first_token + row / group_];
    const long count = piece.num_tiles * kTileTokens;
    const SeenKeys seen{how_.window > 0 ? position + 1 - how_.window - piece.first_key : 0,
                        std::min(count, position + 1 - piece.first_key), count};
    float unit = static_cast<float>(how_.scale);
    if constexpr (kTakesIntegers<Kind>) unit *= queries.scales[row];
    const RowSoftmax<kHasScales> softmax(products, seen, scales, unit,
                                         static_cast<float>(how_.softcap));
    Input* to = weights.data + place * weights.stride;
    const float top = softmax.highest_score();
    out.highest[row] = top;
    if (top <= kMasked) {
      // It sees no key of this piece, or only scores that are none; all differences are 0 and would
      // weigh 1.
      std::fill_n(to, weights.stride, Input{});
      if constexpr (kTakesIntegers<Kind>) weights.scales[place] = weights.sums[place] = 0;
      out.sums[row] = seen.has_any() ? NAN : 0.0f;
      return;
    }
    const long next_bytes = key_dim_ / kPieceTiles * static_cast<long>(sizeof(Element));
    Vec heaviest = zero();
    out.sums[row] = softmax.each_weight(top, [&](long i, Vec weight) {
      if (next != nullptr) fetch_range(next, i * next_bytes, (i + kLanes) * next_bytes);
      if constexpr (kTakesIntegers<Kind>) {
        heaviest = max(heaviest, weight);
        store(products + i, weight);
      } else {
        store(to + i, weight);
      }
    });
    if constexpr (kTakesIntegers<Kind>)
      put_row(weights, place, products, count, highest(heaviest), Int8::kInputLimit);
  }

  void sum_values(const Panels& panels, long num_tiles, const Rows<Kind>& weights, int height,
                  float* out) const {
    for (long dim = 0; dim < value_dim_; dim += kColumns) {
      Part<Weight> parts[kPieceTiles];
      for (long t = 0; t < num_tiles; ++t)
        parts[t] = {panels.values[t] + dim * kTileTokens, panels.values_ahead[t]};
      dot_rows(weights, 0, height, parts, num_tiles, kTileTokens, out + dim, value_dim_);
    }
    if constexpr (kTakesIntegers<Kind>)
      for (long row = 0; row < height; ++row)
        for (long dim = 0; dim < value_dim_; dim += kLanes) {
          float* place = out + row * value_dim_ + dim;
          store(place, mul(load(place), set1(weights.scales[row])));
        }
  }

  template <class Use>
  void finish(const AttentionItem& item, const Partial& whole, long rows, Use&& use) const {
    for (long row = 0; row < rows; ++row) {
      const long head = item.kv_head * group_ + row % group_;
      float total = whole.sums[row];
      if (how_.sinks.data != nullptr) {
        // One more score without a value.
        float sink[kLanes] = {how_.sinks.data[head] * kLog2e - whole.highest[row]};
        store(sink, exp2(min(load(sink), set1(120.0f))));
        total += sink[0];
      }
      float* values = whole.values + row * value_dim_;
      const Vec inverse = set1(1.0f / total);
      for (long dim = 0; dim < value_dim_; dim += kLanes)
        store(values + dim, mul(load(values + dim), inverse));
      use(item.first_token + row / group_, head, values);
    }
  }

  static void dot_rows(const Rows<Kind>& rows, long first, int height, const Part<Weight>* parts,
                       long num_parts, long k, float* out, long out_stride) {
    const Input* a = rows.data + first * rows.stride;
    if constexpr (kTakesIntegers<Kind>)
      dot_int8_kv(a, rows.stride, rows.sums + first, height, parts, num_parts, k, out, out_stride);
    else
      dot<Kind>(a, rows.stride, height, parts, num_parts, k, out, out_stride);
  }

  const mr_kv& kv_;
  const mr_attention& how_;
  const mr_batch& batch_;
  const long group_;
  const long key_dim_;
  const long value_dim_;
  const float query_limit_;
};

}  // namespace millrace
