// How the attention of a step is cut into items, which members of a team take one by one.
//
// An item is one K/V head of up to kMaxTileRows query rows: the heads that share the K/V head, times
// the tokens of one sequence. Keys are taken in pieces of a fixed length that begin at multiples of
// it. Where there are few items, each piece is one, and the pieces are merged in order afterwards.
#pragma once

#include <algorithm>
#include <vector>

#include "kv_tile.h"

namespace millrace {

constexpr long kPieceTiles = 8;
constexpr long kPieceTokens = kPieceTiles * kTileTokens;
constexpr long kMaxTileRows = 48;
// With fewer items than this per member, the pieces of a row are shared out too: the last item that
// a member takes keeps the others waiting for at most so much of the whole.
constexpr long kItemsPerMember = 12;

struct AttentionItem {
  long row;
  long kv_head;
  long first_token;  // in the flattened batch
  long num_tokens;
  long first_piece;
  long end_piece;
  long partial;  // number of the first row of partial results, or -1 where one item does it all
};

// What all layers of a step share.
class AttentionPlan {
 public:
  void build(const mr_batch& batch, long num_heads, long num_kv_heads, long window, int team_size) {
    items_.clear();
    merges_.clear();
    num_partial_rows_ = 0;
    group_ = num_heads / num_kv_heads;
    const long tokens = std::max(1L, kMaxTileRows / group_);
    long whole = 0;
    for (long row = 0; row < batch.num_rows; ++row) {
      const long length = batch.cu_seqlens_q.data[row + 1] - batch.cu_seqlens_q.data[row];
      whole += (length + tokens - 1) / tokens * num_kv_heads;
    }
    const bool split = team_size > 1 && whole < kItemsPerMember * team_size;
    // The last tokens of a row see the most keys: the longest items go first.
    for (long row = 0; row < batch.num_rows; ++row) {
      const long start = batch.cu_seqlens_q.data[row], end = batch.cu_seqlens_q.data[row + 1];
      const long tiles = (end - start + tokens - 1) / tokens;
      for (long tile = tiles - 1; tile >= 0; --tile) {
        const long first = start + tile * tokens;
        add(batch, row, first, std::min(tokens, end - first), num_kv_heads, window, split);
      }
    }
  }

  const std::vector<AttentionItem>& items() const { return items_; }
  const std::vector<AttentionItem>& merges() const { return merges_; }
  long num_partial_rows() const { return num_partial_rows_; }

 private:
  void add(const mr_batch& batch, long row, long first, long count, long num_kv_heads, long window,
           bool split) {
    const long from = batch.positions.data[first], to = batch.positions.data[first + count - 1];
    const long low = window > 0 ? std::max(0L, from - window + 1) : 0;
    const long first_piece = low / kPieceTokens, end_piece = to / kPieceTokens + 1;
    for (long head = 0; head < num_kv_heads; ++head) {
      AttentionItem item{row, head, first, count, first_piece, end_piece, -1};
      if (!split || end_piece - first_piece == 1) {
        items_.push_back(item);
        continue;
      }
      item.partial = num_partial_rows_;
      merges_.push_back(item);
      for (long piece = first_piece; piece < end_piece; ++piece) {
        item.first_piece = piece;
        item.end_piece = piece + 1;
        item.partial = num_partial_rows_;
        items_.push_back(item);
        num_partial_rows_ += count * group_;
      }
    }
  }

  std::vector<AttentionItem> items_;
  std::vector<AttentionItem> merges_;
  long num_partial_rows_ = 0;
  long group_ = 1;
};

}  // namespace millrace
