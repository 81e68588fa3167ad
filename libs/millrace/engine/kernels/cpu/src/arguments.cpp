#include "arguments.h"

#include <algorithm>

#include "attention_plan.h"
#include "kv_tile.h"
#include "pack.h"
#include "refusal.h"

namespace millrace {

namespace {

// Products of two sizes, times the bytes of a number, stay below 2^63; so do those of a head's
// dimension, heads, and tokens or tiles.
constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int64_t kMaxHeads = int64_t{1} << 12;
constexpr int64_t kMaxHeadDim = int64_t{1} << 14;
constexpr int64_t kMaxLayers = int64_t{1} << 16;
constexpr int64_t kMaxTilesPerBlock = int64_t{1} << 15;
constexpr int64_t kMaxThreads = 4096;
constexpr int64_t kMaxWord = 0xffffffff;  // of a random number's counter
constexpr int64_t kNumber = sizeof(float);

void check_floats(const Place& place, const mr_floats& floats, int64_t count) {
  expect_equal({"count", &place}, floats.count, count);
  if (count > 0) expect_memory({"data", &place}, floats.data, kNumber);
}

// Some that may be left out.
void check_optional(const Place& place, const mr_floats& floats, int64_t count) {
  check_floats(place, floats, floats.data == nullptr ? 0 : count);
}

void check_numbers(const Place& place, const mr_numbers& numbers, int64_t count) {
  expect_equal({"count", &place}, numbers.count, count);
  if (count > 0) expect_memory({"data", &place}, numbers.data, sizeof(int64_t));
}

void check_matrix(const Place& place, const mr_matrix& matrix) {
  expect_between({"kind", &place}, matrix.kind, MR_F32, MR_INT4);
  expect_between({"columns", &place}, matrix.columns, 1, kMaxSize);
  expect_between({"k", &place}, matrix.k, 1, kMaxSize);
  expect_equal({"bytes", &place}, matrix.bytes,
               panel_bytes(matrix.kind, matrix.columns, matrix.k));
  expect_memory({"panels", &place}, matrix.panels, kNumber);
  check_optional({"bias", &place}, matrix.bias, round_up(matrix.columns, kColumns));
}

void check_matrix(const Place& place, const mr_matrix& matrix, int64_t kind, int64_t columns,
                  int64_t k) {
  expect_equal({"kind", &place}, matrix.kind, kind);
  expect_equal({"columns", &place}, matrix.columns, columns);
  expect_equal({"k", &place}, matrix.k, k);
  check_matrix(place, matrix);
}

void check_heads(int64_t num_heads, int64_t num_kv_heads) {
  expect_between({"num_kv_heads"}, num_kv_heads, 1, kMaxHeads);
  expect_between({"num_heads"}, num_heads, 1, kMaxHeads);
  if (num_heads % num_kv_heads != 0)
    refuse_value({"num_heads"}, num_heads, "a multiple of num_kv_heads, ", num_kv_heads);
  if (num_heads / num_kv_heads > kMaxTileRows)
    refuse(MR_UNSUPPORTED, "more than 48 query heads share a K/V head");
}

void check_kv(const Place& place, const mr_kv& kv) {
  expect_between({"kind", &place}, kv.kind, MR_F32, MR_INT8);
  expect_between({"num_kv_heads", &place}, kv.num_kv_heads, 1, kMaxHeads);
  expect_between({"key_dim", &place}, kv.key_dim, 1, kMaxHeadDim);
  expect_between({"value_dim", &place}, kv.value_dim, 1, kMaxHeadDim);
  expect_at_least({"bytes", &place}, kv.bytes, 0);
  expect_memory({"data", &place}, kv.data, kNumber);
}

int64_t num_blocks_of(const mr_kv& kv, int64_t tiles_per_block) {
  const int64_t tile = tile_bytes(kv.kind, kv.key_dim, kv.value_dim);
  return kv.bytes / (tile * kv.num_kv_heads * tiles_per_block);
}

// A row's new tokens, from `first` to before `end` in the batch.
void check_row(const mr_batch& batch, int64_t row, int64_t first, int64_t end) {
  const int64_t length = end - first, context = batch.context_lens.data[row];
  const int64_t room = batch.table_width * batch.tiles_per_block * kTileTokens;
  expect_between({"context_lens", nullptr, row}, context, length, room);
  for (int64_t token = first; token < end; ++token)
    if (batch.positions.data[token] != context - end + token)
      refuse_value({"positions", nullptr, token}, batch.positions.data[token], "",
                   context - end + token);
}

void check_blocks(const mr_batch& batch, int64_t row, int64_t num_blocks) {
  const int64_t tokens = batch.tiles_per_block * kTileTokens;
  const int64_t first = row * batch.table_width;
  const int64_t end = first + (batch.context_lens.data[row] + tokens - 1) / tokens;
  for (int64_t i = first; i < end; ++i)
    if (batch.block_tables.data[i] < 0 || batch.block_tables.data[i] >= num_blocks)
      refuse_outside({"block_tables", nullptr, i}, batch.block_tables.data[i], 0, num_blocks - 1);
}

void check_tiles_per_block(const mr_batch& batch) {
  expect_between({"tiles_per_block"}, batch.tiles_per_block, 1, kMaxTilesPerBlock);
}

// `num_blocks` are there; `tiles_per_block` is checked.
void check_batch(const mr_batch& batch, int64_t num_blocks) {
  expect_between({"num_rows"}, batch.num_rows, 0, kMaxSize);
  expect_between({"num_tokens"}, batch.num_tokens, 0, kMaxSize);
  expect_between({"table_width"}, batch.table_width, 0, kMaxSize);
  check_numbers({"cu_seqlens_q"}, batch.cu_seqlens_q, batch.num_rows + 1);
  check_numbers({"context_lens"}, batch.context_lens, batch.num_rows);
  check_numbers({"positions"}, batch.positions, batch.num_tokens);
  check_numbers({"block_tables"}, batch.block_tables, batch.num_rows * batch.table_width);
  const int64_t* starts = batch.cu_seqlens_q.data;
  expect_equal({"cu_seqlens_q", nullptr, 0}, starts[0], 0);
  for (int64_t row = 0; row < batch.num_rows; ++row)
    expect_between({"cu_seqlens_q", nullptr, row + 1}, starts[row + 1], starts[row],
                   batch.num_tokens);
  expect_equal({"cu_seqlens_q", nullptr, batch.num_rows}, starts[batch.num_rows],
               batch.num_tokens);
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    check_row(batch, row, starts[row], starts[row + 1]);
    check_blocks(batch, row, num_blocks);
  }
}

void check_samples(const mr_batch& batch, int64_t vocab) {
  check_numbers({"input_ids"}, batch.input_ids, batch.num_tokens);
  for (int64_t token = 0; token < batch.num_tokens; ++token)
    if (batch.input_ids.data[token] < 0 || batch.input_ids.data[token] >= vocab)
      refuse_outside({"input_ids", nullptr, token}, batch.input_ids.data[token], 0, vocab - 1);
  expect_between({"num_samples"}, batch.num_samples, 0, kMaxSize);
  check_numbers({"sample_indices"}, batch.sample_indices, batch.num_samples);
  for (int64_t row = 0; row < batch.num_samples; ++row)
    expect_between({"sample_indices", nullptr, row}, batch.sample_indices.data[row], 0,
                   batch.num_tokens - 1);
}

void check_output(const mr_output& out, int64_t num_samples, int64_t vocab) {
  expect_equal({"num_wanted"}, out.num_wanted, num_samples);
  expect_equal({"num_likeliest"}, out.num_likeliest, num_samples);
  expect_at_least({"num_logits"}, out.num_logits, num_samples * round_up(vocab, kColumns));
  expect_memory({"progress"}, const_cast<const int64_t*>(out.progress), sizeof(int64_t));
  if (num_samples == 0) return;
  expect_memory({"wants_logits"}, out.wants_logits, 1);
  expect_memory({"logits"}, out.logits, kNumber);
  expect_memory({"likeliest"}, out.likeliest, sizeof(int64_t));
}

void check_layer(const Place& place, const mr_model& model, const mr_layer& layer) {
  const int64_t width = round_up(model.hidden, kAlignK);
  const int64_t attended = model.num_heads * model.head_dim;
  const int64_t kind = model.layers[0].qkv.kind;
  check_floats({"input_norm", &place}, layer.input_norm, width);
  check_floats({"post_norm", &place}, layer.post_norm, width);
  check_optional({"q_norm", &place}, layer.q_norm, model.head_dim);
  check_optional({"k_norm", &place}, layer.k_norm, model.head_dim);
  check_matrix({"qkv", &place}, layer.qkv, kind,
               attended + 2 * model.num_kv_heads * model.head_dim, model.hidden);
  check_matrix({"o", &place}, layer.o, kind, model.hidden, attended);
  check_matrix({"gate_up", &place}, layer.gate_up, kind, 2 * round_up(model.intermediate, kColumns),
               model.hidden);
  check_matrix({"down", &place}, layer.down, kind, model.hidden, model.intermediate);
  expect_between({"window", &place}, layer.window, 0, kMaxSize);
}

}  // namespace

void check_team_size(int64_t size) { expect_between({"num_threads"}, size, 1, kMaxThreads); }

void check_present(const char* name, const void* data) { expect_memory({name}, data, 1); }

void check_tile(int64_t kind, int64_t key_dim, int64_t value_dim) {
  expect_between({"kind"}, kind, MR_F32, MR_INT8);
  expect_between({"key_dim"}, key_dim, 1, kMaxHeadDim);
  expect_between({"value_dim"}, value_dim, 1, kMaxHeadDim);
}

void check_panels(int64_t kind, int64_t columns, int64_t k) {
  expect_between({"kind"}, kind, MR_F32, MR_INT4);
  expect_between({"columns"}, columns, 1, kMaxSize);
  expect_between({"k"}, k, 1, kMaxSize);
}

void check_pack(int64_t kind, const float* source, int64_t num_source, int64_t columns, int64_t k,
                const void* panels, int64_t bytes) {
  check_panels(kind, columns, k);
  expect_equal({"num_source"}, num_source, columns * k);
  expect_equal({"bytes"}, bytes, panel_bytes(kind, columns, k));
  expect_memory({"source"}, source, kNumber);
  expect_memory({"panels"}, panels, kNumber);
}

void check_multiply(const mr_matrix& matrix, const float* in, int64_t num_in, int64_t rows,
                    const float* out, int64_t num_out) {
  check_matrix({"matrix"}, matrix);
  expect_between({"rows"}, rows, 0, kMaxSize);
  expect_equal({"num_in"}, num_in, rows * matrix.k);
  expect_at_least({"num_out"}, num_out, rows * round_up(matrix.columns, kColumns));
  if (rows == 0) return;
  expect_memory({"in"}, in, kNumber);
  expect_memory({"out"}, out, kNumber);
}

void check_attend(const mr_kv& kv, const mr_attention& how, const mr_batch& batch,
                  const mr_heads& heads) {
  check_kv({"kv"}, kv);
  check_heads(how.num_heads, kv.num_kv_heads);
  expect_finite({"scale"}, how.scale, -1e30);
  expect_between({"window"}, how.window, 0, kMaxSize);
  expect_finite({"softcap"}, how.softcap, 0.0);
  check_optional({"sinks"}, how.sinks, how.num_heads);
  check_tiles_per_block(batch);
  check_batch(batch, num_blocks_of(kv, batch.tiles_per_block));
  check_floats({"q"}, heads.q, batch.num_tokens * how.num_heads * kv.key_dim);
  check_floats({"k"}, heads.k, batch.num_tokens * kv.num_kv_heads * kv.key_dim);
  check_floats({"v"}, heads.v, batch.num_tokens * kv.num_kv_heads * kv.value_dim);
  expect_at_least({"num_out"}, heads.num_out, batch.num_tokens * how.num_heads * kv.value_dim);
  if (batch.num_tokens > 0) expect_memory({"out"}, heads.out, kNumber);
}

void check_model(const mr_model& model) {
  expect_between({"num_layers"}, model.num_layers, 1, kMaxLayers);
  expect_between({"hidden"}, model.hidden, 1, kMaxSize);
  expect_between({"intermediate"}, model.intermediate, 1, kMaxSize);
  expect_between({"vocab"}, model.vocab, 1, kMaxSize);
  expect_between({"head_dim"}, model.head_dim, 2, kMaxHeadDim);
  if (model.head_dim % 2 != 0) refuse_value({"head_dim"}, model.head_dim, "a multiple of ", 2);
  check_heads(model.num_heads, model.num_kv_heads);
  expect_between({"embedding_kind"}, model.embedding_kind, MR_F32, MR_BF16);
  const int64_t size = kv_element_bytes(model.embedding_kind);
  expect_equal({"embedding_bytes"}, model.embedding_bytes, model.vocab * model.hidden * size);
  expect_memory({"embedding"}, model.embedding, size);
  expect_finite({"norm_eps"}, model.norm_eps, 0.0);
  check_floats({"frequencies"}, model.frequencies, model.head_dim / 2);
  check_floats({"final_norm"}, model.final_norm, round_up(model.hidden, kAlignK));
  expect_memory({"layers"}, model.layers, sizeof(int64_t));
  expect_between({"layers[0].qkv.kind"}, model.layers[0].qkv.kind, MR_F32, MR_INT4);
  for (int64_t index = 0; index < model.num_layers; ++index)
    check_layer({"layers", nullptr, index}, model, model.layers[index]);
  const int64_t kind = model.layers[0].qkv.kind;
  const int64_t head_kind = kind == MR_INT4 ? static_cast<int64_t>(MR_INT8) : kind;
  check_matrix({"head"}, model.head, head_kind, model.vocab, model.hidden);
}

void check_run(const mr_model& model, int64_t kv_kind, const mr_kv* kv, int64_t num_kv,
               const mr_batch& batch, const mr_output& out) {
  expect_equal({"num_kv"}, num_kv, model.num_layers);
  expect_memory({"kv"}, kv, sizeof(int64_t));
  check_tiles_per_block(batch);
  int64_t num_blocks = INT64_MAX;
  for (int64_t index = 0; index < num_kv; ++index) {
    const Place place{"kv", nullptr, index};
    check_kv(place, kv[index]);
    expect_equal({"kind", &place}, kv[index].kind, kv_kind < 0 ? kv[0].kind : kv_kind);
    expect_equal({"num_kv_heads", &place}, kv[index].num_kv_heads, model.num_kv_heads);
    expect_equal({"key_dim", &place}, kv[index].key_dim, model.head_dim);
    expect_equal({"value_dim", &place}, kv[index].value_dim, model.head_dim);
    num_blocks = std::min(num_blocks, num_blocks_of(kv[index], batch.tiles_per_block));
  }
  check_batch(batch, num_blocks);
  check_samples(batch, model.vocab);
  check_output(out, batch.num_samples, model.vocab);
}

void check_draws(const float* logits, int64_t num_logits, int64_t stride, int64_t vocab,
                 const mr_draw* draws, int64_t num_draws, const int64_t* tokens) {
  expect_between({"vocab"}, vocab, 1, kMaxSize);
  expect_between({"stride"}, stride, vocab, kMaxSize);
  expect_at_least({"num_logits"}, num_logits, 0);
  expect_between({"num_draws"}, num_draws, 0, kMaxSize);
  if (num_draws == 0) return;
  expect_memory({"logits"}, logits, kNumber);
  expect_memory({"draws"}, draws, sizeof(int64_t));
  expect_memory({"tokens"}, tokens, sizeof(int64_t));
  const int64_t num_rows = num_logits < vocab ? 0 : (num_logits - vocab) / stride + 1;
  for (int64_t index = 0; index < num_draws; ++index) {
    const Place place{"draws", nullptr, index};
    const mr_draw& draw = draws[index];
    expect_between({"row", &place}, draw.row, 0, num_rows - 1);
    expect_between({"position", &place}, draw.position, 0, kMaxWord);
    expect_between({"choice", &place}, draw.choice, 0, kMaxWord);
    expect_at_least({"top_k", &place}, draw.top_k, 0);
    expect_between({"top_p", &place}, draw.top_p, 0.0, 1.0);
    expect_between({"min_p", &place}, draw.min_p, 0.0, 1.0);
  }
}

}  // namespace millrace
