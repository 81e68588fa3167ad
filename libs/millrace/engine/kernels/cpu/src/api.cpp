#include <memory>
#include <new>
#include <stdexcept>
#include <system_error>

#include "arguments.h"
#include "decoder.h"
#include "draw.h"
#include "pack.h"
#include "refusal.h"

namespace millrace {

namespace {

template <class Run>
int64_t guarded(Run&& run) {
  try {
    return run();
  } catch (const Refusal& refusal) {
    return refusal.code;
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
    // More than a vector may hold.
  } catch (const std::system_error&) {
    // No more threads.
  }
  return MR_OUT_OF_MEMORY;
}

// What `count` returns, or a code below zero.
template <class Count>
int64_t counted(const Count& count) {
  int64_t bytes = 0;
  const int64_t code = guarded([&] {
    bytes = count();
    return MR_OK;
  });
  return code == MR_OK ? bytes : -code;
}

template <class Kind>
int64_t multiply(Team& team, const mr_matrix& given, const float* in, int64_t rows, float* out) {
  static thread_local RowBuffer<Kind> room;
  const Matrix<Kind> matrix(given);
  const Rows<Kind> inputs = room.reserve(rows, given.k);
  const long width = matrix.num_panels() * kColumns;
  Buffer<float> padded_rows;
  std::vector<Buffer<float>> row_room(team.size());
  for (Buffer<float>& row : row_room) row.reserve(matrix.k);
  team.run([&](Member& member) {
    each_rows(member, rows, [&](long first, long end) {
      float* padded = row_room[member.index].data();
      for (long row = first; row < end; ++row) {
        std::memcpy(padded, in + row * given.k, given.k * sizeof(float));
        put_row(inputs, row, padded, matrix.k);
      }
    });
    multiply_rows(member, matrix, inputs, rows, nullptr,
                  [&](long panel, long row, const float* values) {
                    std::memcpy(out + row * width + panel * kColumns, values,
                                kColumns * sizeof(float));
                  });
    release_tiles();
  });
  return MR_OK;
}

template <class Kind, class Element>
int64_t attend(Team& team, const mr_kv& kv, const mr_attention& how, const mr_batch& batch,
               const mr_heads& heads) {
  const float *k = heads.k.data, *v = heads.v.data;
  float* out = heads.out;
  using Attend = Attention<Kind, Element>;
  // Kept from call to call: to clear them anew takes as long as attention does for one row.
  static thread_local std::vector<typename Attend::Scratch> scratch_room;
  static thread_local Buffer<float> partials_room;
  AttentionPlan plan;
  plan.build(batch, how.num_heads, kv.num_kv_heads, how.window, team.size());
  scratch_room.resize(std::max<size_t>(scratch_room.size(), team.size()));
  for (auto& one : scratch_room) one.reserve(kv.key_dim, kv.value_dim);
  auto& scratch = scratch_room;
  float* partials =
      partials_room.reserve(plan.num_partial_rows() * Attend::partial_floats(kv.value_dim));
  const Attend attention(kv, how, batch);
  const Queries queries{heads.q.data, how.num_heads * kv.key_dim};
  const auto use = [&](long token, long head, const float* values) {
    std::memcpy(out + (token * how.num_heads + head) * kv.value_dim, values,
                kv.value_dim * sizeof(float));
  };
  const auto& items = plan.items();
  const long num_items = static_cast<long>(items.size());
  team.run([&](Member& member) {
    each_rows(member, batch.num_tokens, [&](long first, long end) {
      fetch_places<Kind, Element>(kv, batch, first, end);
      for (long token = first; token < end; ++token) {
        const long position = batch.positions.data[token];
        const long tile = tile_of(batch, row_of(batch, token), position);
        for (long head = 0; head < kv.num_kv_heads; ++head)
          KvTile<Kind, Element>(kv, tile, head)
              .put(kv, position % kTileTokens, k + (token * kv.num_kv_heads + head) * kv.key_dim,
                   v + (token * kv.num_kv_heads + head) * kv.value_dim);
      }
    }, tokens_per_put(batch));
    member.each_ahead(num_items, [&](long item, long next) {
      attention.run(items[item], next < num_items ? &items[next] : nullptr, queries,
                    scratch[member.index], partials, use);
    });
    member.each(static_cast<long>(plan.merges().size()), [&](long item) {
      attention.run_merge(plan.merges()[item], scratch[member.index], partials, use);
    });
    release_tiles();
  });
  return MR_OK;
}

int64_t draw_tokens(Team& team, const float* logits, long stride, long vocab,
                    const mr_draw* draws, long num_draws, int64_t* tokens) {
  static thread_local std::vector<Buffer<float>> room;
  room.resize(std::max<size_t>(room.size(), team.size()));
  const bool has_top_k =
      std::any_of(draws, draws + num_draws, [](const mr_draw& draw) { return draw.top_k > 0; });
  for (int member = 0; has_top_k && member < team.size(); ++member) room[member].reserve(vocab);
  std::vector<Buffer<float>>& scratch = room;
  team.run([&](Member& member) {
    member.each(num_draws, [&](long i) {
      tokens[i] = draw_token(logits + draws[i].row * stride, vocab, draws[i],
                             scratch[member.index].data());
    });
  });
  return MR_OK;
}

// The decoder for these kinds of weights; K/V of the kind that the first `run` gets.
class Model {
 public:
  explicit Model(const mr_model& model)
      : layers_(model.layers, model.layers + model.num_layers), model_(model) {
    model_.layers = layers_.data();
  }

  int64_t run(Team& team, const mr_kv* kv, int64_t num_kv, const mr_batch& batch,
              const mr_output& out) {
    check_run(model_, kv_kind_, kv, num_kv, batch, out);
    if (!decoder_) {
      decoder_ = create(kv[0].kind);
      if (!decoder_) refuse(MR_UNSUPPORTED, "weights and K/V are of kinds that do not go together");
      kv_kind_ = kv[0].kind;
    }
    decoder_->run(team, kv, batch, out);
    return MR_OK;
  }

  int64_t sound_rows(uint8_t* is_sound, int64_t num_rows) const {
    if (!decoder_) refuse(MR_INVALID, "the model has not run yet");
    const auto& rows = decoder_->sound_rows();
    expect_equal({"num_rows"}, num_rows, static_cast<int64_t>(rows.size()));
    std::copy(rows.begin(), rows.end(), is_sound);
    return MR_OK;
  }

 private:
  template <class Kind>
  std::unique_ptr<Decoder> create_for(int64_t kv_kind) const {
    if (kv_kind == MR_INT8) return std::make_unique<LlamaDecoder<Kind, Int8Kv, int8_t>>(model_);
    if constexpr (!std::is_same_v<Kind, Bf16>)
      if (kv_kind == MR_F32) return std::make_unique<LlamaDecoder<Kind, F32, float>>(model_);
    if constexpr (!std::is_same_v<Kind, F32>)
      if (kv_kind == MR_BF16) return std::make_unique<LlamaDecoder<Kind, Bf16, bf16>>(model_);
    return nullptr;
  }
  std::unique_ptr<Decoder> create(int64_t kv_kind) const {
    const int64_t kind = model_.layers[0].qkv.kind;
    if (kind == MR_F32) return create_for<F32>(kv_kind);
    if (kind == MR_BF16) return create_for<Bf16>(kv_kind);
    if (kind == MR_INT4) return create_for<Int4>(kv_kind);
    return create_for<Int8>(kv_kind);
  }

  const std::vector<mr_layer> layers_;
  mr_model model_;
  int64_t kv_kind_ = -1;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace

}  // namespace millrace

using namespace millrace;

extern "C" {

int64_t mr_abi(void) { return 4; }

const char* mr_reason(void) { return reason(); }

int64_t mr_team_create(int64_t size, void** team) {
  return guarded([&] {
    check_present("team", team);
    *team = nullptr;
    check_team_size(size);
    if (!prepare_tiles()) refuse(MR_UNSUPPORTED, "the system gives no tile registers");
    *team = new Team(static_cast<int>(size));
    return MR_OK;
  });
}

void mr_team_destroy(void* team) { delete static_cast<Team*>(team); }

int64_t mr_tile_bytes(int64_t kind, int64_t key_dim, int64_t value_dim) {
  return counted([&] {
    check_tile(kind, key_dim, value_dim);
    return tile_bytes(kind, key_dim, value_dim);
  });
}

int64_t mr_panel_bytes(int64_t kind, int64_t columns, int64_t k) {
  return counted([&] {
    check_panels(kind, columns, k);
    return panel_bytes(kind, columns, k);
  });
}

int64_t mr_pack(int64_t kind, const float* source, int64_t num_source, int64_t columns, int64_t k,
                void* panels, int64_t bytes) {
  return guarded([&] {
    check_pack(kind, source, num_source, columns, k, panels, bytes);
    if (kind == MR_F32)
      pack<F32>(source, columns, k, static_cast<float*>(panels));
    else if (kind == MR_BF16)
      pack<Bf16>(source, columns, k, static_cast<bf16*>(panels));
    else if (kind == MR_INT4)
      pack_groups<Int4>(source, columns, k, static_cast<uint8_t*>(panels));
    else
      pack_groups<Int8>(source, columns, k, static_cast<uint8_t*>(panels));
    return MR_OK;
  });
}

int64_t mr_multiply(void* team, const mr_matrix* matrix, const float* in, int64_t num_in,
                    int64_t rows, float* out, int64_t num_out) {
  return guarded([&] {
    check_present("team", team);
    check_present("matrix", matrix);
    check_multiply(*matrix, in, num_in, rows, out, num_out);
    Team& members = *static_cast<Team*>(team);
    if (matrix->kind == MR_F32) return multiply<F32>(members, *matrix, in, rows, out);
    if (matrix->kind == MR_BF16) return multiply<Bf16>(members, *matrix, in, rows, out);
    if (matrix->kind == MR_INT4) return multiply<Int4>(members, *matrix, in, rows, out);
    return multiply<Int8>(members, *matrix, in, rows, out);
  });
}

int64_t mr_attend(void* team, const mr_kv* kv, const mr_attention* how, const mr_batch* batch,
                  const mr_heads* heads) {
  return guarded([&] {
    check_present("team", team);
    check_present("kv", kv);
    check_present("how", how);
    check_present("batch", batch);
    check_present("heads", heads);
    check_attend(*kv, *how, *batch, *heads);
    Team& members = *static_cast<Team*>(team);
    if (kv->kind == MR_F32) return attend<F32, float>(members, *kv, *how, *batch, *heads);
    if (kv->kind == MR_BF16) return attend<Bf16, bf16>(members, *kv, *how, *batch, *heads);
    return attend<Int8Kv, int8_t>(members, *kv, *how, *batch, *heads);
  });
}

int64_t mr_model_create(const mr_model* model, void** created) {
  return guarded([&] {
    check_present("created", created);
    *created = nullptr;
    check_present("model", model);
    check_model(*model);
    *created = new Model(*model);
    return MR_OK;
  });
}

void mr_model_destroy(void* model) { delete static_cast<Model*>(model); }

int64_t mr_model_run(void* model, void* team, const mr_kv* kv, int64_t num_kv,
                     const mr_batch* batch, const mr_output* out) {
  return guarded([&] {
    check_present("model", model);
    check_present("team", team);
    check_present("batch", batch);
    check_present("out", out);
    return static_cast<Model*>(model)->run(*static_cast<Team*>(team), kv, num_kv, *batch, *out);
  });
}

int64_t mr_model_sound_rows(const void* model, uint8_t* is_sound, int64_t num_rows) {
  return guarded([&] {
    check_present("model", model);
    check_present("is_sound", is_sound);
    return static_cast<const Model*>(model)->sound_rows(is_sound, num_rows);
  });
}

int64_t mr_draw_tokens(void* team, const float* logits, int64_t num_logits, int64_t stride,
                       int64_t vocab, const mr_draw* draws, int64_t num_draws, int64_t* tokens) {
  return guarded([&] {
    check_present("team", team);
    check_draws(logits, num_logits, stride, vocab, draws, num_draws, tokens);
    return draw_tokens(*static_cast<Team*>(team), logits, stride, vocab, draws, num_draws, tokens);
  });
}

}  // extern "C"
