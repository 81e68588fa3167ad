// Paged attention of a flattened batch, prefill and decode rows alike.
//
// An item is one K/V head of up to kMaxTileRows query rows: the heads that share the K/V head, times
// the tokens of one sequence. Keys are taken in pieces of a fixed length that begin at multiples of
// it; each piece is softmaxed by itself and merged into the row's result in order (online softmax:
// Milakov and Gimelshein, arXiv 1805.02867). A row's result depends on its own keys alone: not on
// the other rows of its item, and not on which members took the pieces.
#pragma once

#include <algorithm>

#include "kv_tile.h"
#include "matmul.h"

namespace millrace {

constexpr long kPieceTiles = 8;
constexpr long kPieceTokens = kPieceTiles * kTileTokens;
constexpr long kMaxTileRows = 48;
// Masked scores; far from the float limits, so that differences of two stay finite.
constexpr float kMasked = -1e30f;
// With fewer items than this per member, the pieces of a row are shared out too.
constexpr long kItemsPerMember = 3;

struct AttentionItem {
  long row;
  long kv_head;
  long first_token;  // in the flattened batch
  long num_tokens;
  long first_piece;
  long end_piece;
  long partial;  // number of the first piece's partial result, or -1 where one item does it all
};

// One online-softmax state per query row: weighted values, highest score, sum of weights.
struct Partial {
  float* values;  // [rows][padded value dim]
  float* highest;
  float* sums;
};

// What all layers of a step share.
class AttentionPlan {
 public:
  void build(const mr_batch& batch, long num_heads, long num_kv_heads, long window, int team_size) {
    items_.clear();
    merges_.clear();
    num_partials_ = 0;
    const long group = num_heads / num_kv_heads;
    const long tokens = std::max(1L, kMaxTileRows / group);
    long whole = 0;
    for (long row = 0; row < batch.num_rows; ++row) {
      const long length = batch.cu_seqlens_q[row + 1] - batch.cu_seqlens_q[row];
      whole += (length + tokens - 1) / tokens * num_kv_heads;
    }
    const bool split = team_size > 1 && whole < kItemsPerMember * team_size;
    // The last tokens of a row see the most keys: the longest items go first.
    for (long row = 0; row < batch.num_rows; ++row) {
      const long start = batch.cu_seqlens_q[row], end = batch.cu_seqlens_q[row + 1];
      const long tiles = (end - start + tokens - 1) / tokens;
      for (long tile = tiles - 1; tile >= 0; --tile) {
        const long first = start + tile * tokens;
        add(batch, row, first, std::min(tokens, end - first), num_kv_heads, window, split);
      }
    }
  }

  const std::vector<AttentionItem>& items() const { return items_; }
  const std::vector<AttentionItem>& merges() const { return merges_; }
  long num_partials() const { return num_partials_; }

 private:
  void add(const mr_batch& batch, long row, long first, long count, long num_kv_heads, long window,
           bool split) {
    const long from = batch.positions[first], to = batch.positions[first + count - 1];
    const long low = window > 0 ? std::max(0L, from - window + 1) : 0;
    const long first_piece = low / kPieceTokens, end_piece = to / kPieceTokens + 1;
    for (long head = 0; head < num_kv_heads; ++head) {
      AttentionItem item{row, head, first, count, first_piece, end_piece, -1};
      if (!split || end_piece - first_piece == 1) {
        items_.push_back(item);
        continue;
      }
      item.partial = num_partials_;
      merges_.push_back(item);
      for (long piece = first_piece; piece < end_piece; ++piece) {
        item.first_piece = piece;
        item.end_piece = piece + 1;
        item.partial = num_partials_++;
        items_.push_back(item);
      }
    }
  }

  std::vector<AttentionItem> items_;
  std::vector<AttentionItem> merges_;
  long num_partials_ = 0;
};

// The attention of one layer: query rows in `Kind`'s input numbers, K/V stored as `Element`.
template <class Kind, class Element>
class Attention {
  using Input = typename Kind::Input;
  using Weight = typename Kind::Weight;

 public:
  // Memory for one member; made before the step, so that nothing is allocated inside it.
  struct Scratch {
    Buffer<Input> queries, weights;
    Buffer<float> scores, piece_values, values;
    Buffer<Weight> keys_unpacked, values_unpacked;
    float piece_highest[kMaxTileRows], piece_sums[kMaxTileRows];
    float highest[kMaxTileRows], sums[kMaxTileRows];

    void reserve(long key_dim, long value_dim) {
      queries.reserve(kMaxTileRows * pad_dim(key_dim));
      weights.reserve(kMaxTileRows * kPieceTokens);
      scores.reserve(kMaxTileRows * kPieceTokens);
      piece_values.reserve(kMaxTileRows * pad_dim(value_dim));
      values.reserve(kMaxTileRows * pad_dim(value_dim));
      keys_unpacked.reserve(kTileTokens * pad_dim(key_dim));
      values_unpacked.reserve(kTileTokens * pad_dim(value_dim));
    }
  };

  Attention(const mr_kv& kv, const mr_attention& how, const mr_batch& batch)
      : kv_(kv),
        how_(how),
        batch_(batch),
        group_(how.num_heads / kv.num_kv_heads),
        key_dim_(pad_dim(kv.key_dim)),
        value_dim_(pad_dim(kv.value_dim)) {}

  static long partial_floats(long group, long value_dim) {
    return rows_of_item(group) * (pad_dim(value_dim) + 2);
  }

  // q [T][heads][padded key dim]; use(token, head, float values[padded value dim]) takes results.
  template <class Use>
  void run(const AttentionItem& item, const Input* q, Scratch& scratch, float* partials,
           Use&& use) const {
    const long rows = item.num_tokens * group_;
    Input* queries = scratch.queries.data();
    for (long token = 0; token < item.num_tokens; ++token)
      std::memcpy(queries + token * group_ * key_dim_,
                  q + ((item.first_token + token) * how_.num_heads + item.kv_head * group_) *
                          key_dim_,
                  group_ * key_dim_ * sizeof(Input));
    if (item.partial >= 0) {
      run_piece(item, item.first_piece, queries, rows, scratch, partial(partials, item.partial));
      return;
    }
    Partial whole{scratch.values.data(), scratch.highest, scratch.sums};
    Partial piece{scratch.piece_values.data(), scratch.piece_highest, scratch.piece_sums};
    begin(whole, rows);
    for (long number = item.first_piece; number < item.end_piece; ++number) {
      run_piece(item, number, queries, rows, scratch, piece);
      merge(whole, piece, rows);
    }
    finish(item, whole, rows, use);
  }

  // Puts the pieces of a split item together.
  template <class Use>
  void run_merge(const AttentionItem& item, Scratch& scratch, float* partials, Use&& use) const {
    const long rows = item.num_tokens * group_;
    Partial whole{scratch.values.data(), scratch.highest, scratch.sums};
    begin(whole, rows);
    for (long number = item.first_piece; number < item.end_piece; ++number)
      merge(whole, partial(partials, item.partial + number - item.first_piece), rows);
    finish(item, whole, rows, use);
  }

 private:
  static long rows_of_item(long group) { return std::max(1L, kMaxTileRows / group) * group; }

  Partial partial(float* partials, long number) const {
    float* base = partials + number * partial_floats(group_, kv_.value_dim);
    const long rows = rows_of_item(group_);
    return {base, base + rows * value_dim_, base + rows * (value_dim_ + 1)};
  }

  void begin(const Partial& whole, long rows) const {
    std::fill_n(whole.values, rows * value_dim_, 0.0f);
    std::fill_n(whole.highest, rows, kMasked);
    std::fill_n(whole.sums, rows, 0.0f);
  }

  void run_piece(const AttentionItem& item, long piece, const Input* queries, long rows,
                 Scratch& scratch, const Partial& out) const {
    const long first_tile = piece * kPieceTiles;
    const long last_position = batch_.positions[item.first_token + item.num_tokens - 1];
    const long end_tile = std::min(first_tile + kPieceTiles, last_position / kTileTokens + 1);
    const long num_tiles = end_tile - first_tile;
    float* scores = scratch.scores.data();
    KvTile<Kind, Element> tiles[kPieceTiles];
    for (long t = 0; t < num_tiles; ++t) tiles[t] = tile_at(item, first_tile + t);
    for (long t = 0; t < num_tiles; ++t) {
      const KvTile<Kind, Element>& tile = tiles[t];
      const Weight* keys = unpack(tile.keys, key_dim_, scratch.keys_unpacked.data());
      const Element* next = t + 1 < num_tiles ? tiles[t + 1].keys : tiles[0].values;
      dot_rows(queries, key_dim_, rows, keys, key_dim_, scores + t * kTileTokens, kPieceTokens,
               false, next);
      if constexpr (std::is_same_v<Element, int8_t>)
        scale_columns(scores + t * kTileTokens, rows, tile.key_scales);
    }
    for (long row = 0; row < rows; ++row)
      weigh(item, piece, row, num_tiles * kTileTokens, scratch, out);
    for (long t = 0; t < num_tiles; ++t) {
      Input* weights = scratch.weights.data() + t * kTileTokens;
      const Weight* values = unpack(tiles[t].values, value_dim_, scratch.values_unpacked.data());
      for (long dim = 0; dim < value_dim_; dim += kColumns)
        dot_rows(weights, kPieceTokens, rows, values + dim * kTileTokens, kTileTokens,
                 out.values + dim, value_dim_, t > 0,
                 t + 1 < num_tiles ? tiles[t + 1].values + dim * kTileTokens : nullptr);
    }
  }

  KvTile<Kind, Element> tile_at(const AttentionItem& item, long tile) const {
    return {kv_, tile_of(batch_, item.row, tile * kTileTokens), item.kv_head};
  }

  // Scores of one row and piece → weights 2^(score - highest), in the base that exp2 takes.
  void weigh(const AttentionItem& item, long piece, long row, long num_keys, Scratch& scratch,
             const Partial& out) const {
    float* scores = scratch.scores.data() + row * kPieceTokens;
    const long position = batch_.positions[item.first_token + row / group_];
    const long first_key = piece * kPieceTokens;
    const long end = std::min(num_keys, position + 1 - first_key);
    const long begin = how_.window > 0 ? position + 1 - how_.window - first_key : 0;
    const Vec scale = set1(static_cast<float>(how_.scale) * kLog2e);
    const float cap = static_cast<float>(how_.softcap);
    Vec most = set1(kMasked);
    for (long i = 0; i < num_keys; i += kLanes) {
      Vec score = load(scores + i);
      if (cap > 0.0f) {
        const Vec bent = tanh(mul(score, set1(static_cast<float>(how_.scale) / cap)));
        score = mul(bent, set1(cap * kLog2e));
      } else {
        score = mul(score, scale);
      }
      store(scores + i, score);
      if (i < begin || i + kLanes > end) {
        for (long key = i; key < i + kLanes; ++key)
          if (key < begin || key >= end) scores[key] = kMasked;
        score = load(scores + i);
      }
      most = max(most, score);
    }
    const float top = highest(most);
    Vec total = zero();
    for (long i = 0; i < num_keys; i += kLanes) {
      Vec weight = exp2(sub(load(scores + i), set1(top)));
      // Where the row sees no key of this piece, all differences are 0 and would weigh 1.
      if (top <= kMasked) weight = zero();
      total = add(total, weight);
      store(scores + i, weight);
    }
    if constexpr (std::is_same_v<Element, int8_t>) scale_by_value_scales(item, piece, row, num_keys, scratch);
    put(scratch.weights.data() + row * kPieceTokens, scores, num_keys);
    out.highest[row] = top;
    out.sums[row] = sum(total);
  }

  void scale_by_value_scales(const AttentionItem& item, long piece, long row, long num_keys,
                             Scratch& scratch) const {
    float* weights = scratch.scores.data() + row * kPieceTokens;
    for (long t = 0; t < num_keys / kTileTokens; ++t) {
      scale_columns(weights + t * kTileTokens, 1,
                    tile_at(item, piece * kPieceTiles + t).value_scales);
    }
  }

  static void scale_columns(float* numbers, long rows, const float* scales) {
    for (long row = 0; row < rows; ++row)
      for (int i = 0; i < kTileTokens; i += kLanes) {
        float* place = numbers + row * kPieceTokens + i;
        store(place, mul(load(place), load(scales + i)));
      }
  }

  static void merge(const Partial& whole, const Partial& piece, long rows, long value_dim) {
    for (long row = 0; row < rows; ++row) {
      const float top = std::max(whole.highest[row], piece.highest[row]);
      float factors[kLanes * 2] = {whole.highest[row] - top, piece.highest[row] - top};
      store(factors, exp2(load(factors)));
      const Vec old_factor = set1(factors[0]), new_factor = set1(factors[1]);
      whole.highest[row] = top;
      whole.sums[row] = whole.sums[row] * factors[0] + piece.sums[row] * factors[1];
      float* to = whole.values + row * value_dim;
      const float* from = piece.values + row * value_dim;
      for (long dim = 0; dim < value_dim; dim += kLanes)
        store(to + dim, fma(load(from + dim), new_factor, mul(load(to + dim), old_factor)));
    }
  }
  void merge(const Partial& whole, const Partial& piece, long rows) const {
    merge(whole, piece, rows, value_dim_);
  }

  template <class Use>
  void finish(const AttentionItem& item, const Partial& whole, long rows, Use&& use) const {
    for (long row = 0; row < rows; ++row) {
      const long head = item.kv_head * group_ + row % group_;
      float total = whole.sums[row];
      if (how_.sinks != nullptr) {
        // One more score without a value.
        float sink[kLanes] = {how_.sinks[head] * kLog2e - whole.highest[row]};
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

  // The panels to multiply with: as stored, or int8 made wide.
  static const Weight* unpack(const Element* stored, long dim, Weight* room) {
    if constexpr (std::is_same_v<Element, int8_t>) {
      for (long i = 0; i < dim * kTileTokens; i += kLanes) store(room + i, load(stored + i));
      return room;
    } else {
      return stored;
    }
  }

  static void dot_rows(const Input* a, long stride, long rows, const Weight* panel, long k,
                       float* out, long out_stride, bool add, const void* next) {
    for (long first = 0; first < rows; first += Kind::kMaxRows) {
      const int height = static_cast<int>(std::min<long>(Kind::kMaxRows, rows - first));
      dot<Kind>(a + first * stride, stride, height, panel, k, out + first * out_stride, out_stride,
                add, first == 0 ? distance(panel, next) : 0);
    }
  }

  const mr_kv& kv_;
  const mr_attention& how_;
  const mr_batch& batch_;
  const long group_;
  const long key_dim_;
  const long value_dim_;
};

}  // namespace millrace
