// The paged K/V cache of a layer, in tiles of 32 tokens of one head.
//
// A tile is K as one panel whose 32 columns are tokens and whose K is the head's dimension, then V
// as panels whose columns are 32 dimensions each and whose K is the 32 tokens: both products of
// attention are then the panel product of dot.h. Dimensions are padded with zeros to 32. Int8 adds
// the scale of each token's K and V; its numbers are moved up where the instruction wants them
// unsigned (kinds.h), and a cleared byte counts for nothing, for it only meets inputs of zero.
#pragma once

#include "dot.h"
#include "millrace_cpu.h"

namespace millrace {

constexpr int kTileTokens = kColumns;

inline long pad_dim(long dim) { return round_up(dim, kColumns); }

inline long kv_element_bytes(long kind) { return kind == MR_F32 ? 4 : kind == MR_BF16 ? 2 : 1; }

inline long tile_bytes(long kind, long key_dim, long value_dim) {
  const long numbers = kTileTokens * (pad_dim(key_dim) + pad_dim(value_dim));
  const long scales = kind == MR_INT8 ? 2 * kTileTokens * static_cast<long>(sizeof(float)) : 0;
  return numbers * kv_element_bytes(kind) + scales;
}

// Where number (token, dimension) of V lies in its part of a tile.
inline long value_offset(int pack, long token, long dim) {
  const long panel = dim / kColumns * kTileTokens * kColumns;
  return panel + (token / pack * kColumns + dim % kColumns) * pack + token % pack;
}

// One head's tile. `Element` is how numbers are stored, the panels are laid out for `Kind`.
template <class Kind, class Element>
struct KvTile {
  Element* keys;
  Element* values;
  float* key_scales;
  float* value_scales;

  KvTile() = default;
  KvTile(const mr_kv& kv, long tile, long head) {
    const long keys_padded = pad_dim(kv.key_dim), values_padded = pad_dim(kv.value_dim);
    const long bytes = tile_bytes(kv.kind, kv.key_dim, kv.value_dim);
    keys = reinterpret_cast<Element*>(static_cast<char*>(kv.data) +
                                      (tile * kv.num_kv_heads + head) * bytes);
    values = keys + kTileTokens * keys_padded;
    key_scales = reinterpret_cast<float*>(values + kTileTokens * values_padded);
    value_scales = key_scales + kTileTokens;
  }

  // Fetches all lines that `put` writes: it would wait for one after the other.
  void fetch_place(const mr_kv& kv, long token) const {
    for (long dim = 0; dim < kv.key_dim; dim += Kind::kPack)
      prefetch(keys + dim * kTileTokens + token * Kind::kPack);
    for (long dim = 0; dim < kv.value_dim; dim += kColumns)
      fetch_ahead<kRowNumbers * sizeof(Element)>(
          values + value_offset(Kind::kPack, token / Kind::kPack * Kind::kPack, dim), 0);
    if constexpr (std::is_same_v<Element, int8_t>) {
      prefetch(key_scales + token);
      prefetch(value_scales + token);
    }
  }

  // Stores a token's key and value.
  void put(const mr_kv& kv, long token, const float* key, const float* value) {
    float key_inverse = 1.0f, value_inverse = 1.0f;
    if constexpr (std::is_same_v<Element, int8_t>) {
      key_inverse = put_scale(key_scales + token, key, kv.key_dim);
      value_inverse = put_scale(value_scales + token, value, kv.value_dim);
    }
    // Neighbours of a key lie side by side, `kPack` of them; those of a value are far apart.
    each_rounded(key, kv.key_dim, key_inverse, [&](long dim, const Element* rounded, long count) {
      Element* place = keys + dim * kTileTokens + token * Kind::kPack;
      for (long i = 0; i < count; i += Kind::kPack)
        std::memcpy(place + i * kTileTokens, rounded + i, Kind::kPack * sizeof(Element));
    });
    each_rounded(value, kv.value_dim, value_inverse,
                 [&](long dim, const Element* rounded, long count) {
                   Element* place = values + value_offset(Kind::kPack, token, dim);
                   for (long i = 0; i < count; ++i) place[i * Kind::kPack] = rounded[i];
                 });
  }

 private:
  static constexpr long kRowNumbers = kTileTokens * Kind::kPack;

  // use(dim, rounded, count) gets numbers of `x` as they are stored, in short runs of one panel.
  template <class Use>
  static void each_rounded(const float* x, long dims, float inverse, Use&& use) {
    Element rounded[kLanes];
    long dim = 0;
    for (; dim + kLanes <= dims; dim += kLanes) {
      put_rounded(load(x + dim), inverse, rounded);
      use(dim, rounded, kLanes);
    }
    if (dim == dims) return;
    float rest[kLanes] = {};
    for (long i = 0; dim + i < dims; ++i) rest[i] = x[dim + i];
    put_rounded(load(rest), inverse, rounded);
    use(dim, rounded, dims - dim);
  }

  static void put_rounded(Vec x, float inverse, Element* rounded) {
    store(rounded, mul(x, set1(inverse)));
    if constexpr (kTakesIntegers<Kind>)
      for (int i = 0; i < kLanes; ++i)
        rounded[i] = static_cast<Element>(rounded[i] + Kind::kWeightOffset);
  }

  // The scale of a token whose numbers are not all finite is not a number: its bytes do not tell.
  static float put_scale(float* scale, const float* x, long count) {
    Vec largest = zero(), wrong = zero();
    long i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Vec value = load(x + i);
      largest = max(largest, abs(value));
      wrong = add(wrong, mul(value, zero()));
    }
    float most = highest(largest), all_wrong = sum(wrong);
    for (; i < count; ++i) {
      most = std::max(most, std::fabs(x[i]));
      all_wrong += x[i] * 0.0f;
    }
    *scale = most / 127.0f + all_wrong;
    return most > 0 ? 127.0f / most : 0.0f;
  }
};

// The row of a batch that a token belongs to, and the tile of the cache that holds a position.
inline long row_of(const mr_batch& batch, long token) {
  const int64_t* end = batch.cu_seqlens_q.data + batch.num_rows + 1;
  return std::upper_bound(batch.cu_seqlens_q.data, end, token) - batch.cu_seqlens_q.data - 1;
}

inline long tile_of(const mr_batch& batch, long row, long position) {
  const long tile = position / kTileTokens;
  const long block = batch.block_tables.data[row * batch.table_width + tile / batch.tiles_per_block];
  return block * batch.tiles_per_block + tile % batch.tiles_per_block;
}

// Calls fetch_place for tokens [first, end) of a batch and all heads.
template <class Kind, class Element>
inline void fetch_places(const mr_kv& kv, const mr_batch& batch, long first, long end) {
  for (long token = first; token < end; ++token) {
    const long position = batch.positions.data[token];
    const long tile = tile_of(batch, row_of(batch, token), position);
    for (long head = 0; head < kv.num_kv_heads; ++head)
      KvTile<Kind, Element>(kv, tile, head).fetch_place(kv, position % kTileTokens);
  }
}

// Tokens that one member puts into tiles at a time. Of a prefill all that share a cache line, for
// members that write the same line wait for each other: a line of keys holds 16 tokens of any kind.
inline long tokens_per_put(const mr_batch& batch) {
  return batch.num_tokens > batch.num_rows ? 16 : 4;
}

}  // namespace millrace
