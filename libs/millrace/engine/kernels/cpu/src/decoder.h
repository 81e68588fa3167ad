// One step of a Llama-like decoder: all layers, the head and the likeliest tokens, in one job.
#pragma once

#include <cfloat>
#include <memory>
#include <vector>

#include "attention.h"
#include "matmul.h"
#include "norm.h"
#include "rope.h"

namespace millrace {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Of the last run, for each row of its batch: 0 if the last layer's output of one of its tokens is
  // not finite. What is not finite in any layer stays so to the last.
  virtual const std::vector<uint8_t>& sound_rows() const = 0;
  virtual void run(Team& team, const mr_kv* kv, const mr_batch& batch, const mr_output& out) = 0;
};

constexpr int64_t kNoToken = -1;

// Zero where every number is finite or -infinity, else NaN; in this order the maximum of a number and
// a NaN is the NaN on every machine.
inline Vec wrongness(Vec x) { return mul(max(set1(-FLT_MAX), x), zero()); }

struct Likeliest {
  float value = -INFINITY;
  int64_t token = 0;
  // NaN once any value was NaN or infinite.
  float wrong = 0.0f;

  // Of equal values the lowest token wins, in whatever order they come.
  void offer(float other, int64_t other_token) {
    if (other > value || (other == value && other_token < token)) {
      value = other;
      token = other_token;
    }
  }

  bool has_token() const { return wrong == 0.0f && value > -INFINITY; }
};

// Weights of `Kind`; attention computes in `KvKind` over K/V stored as `Element`.
template <class Kind, class KvKind, class Element>
class LlamaDecoder final : public Decoder {
  using Attend = Attention<KvKind, Element>;
  // As in files of 4 bits, whose heads have 8.
  using HeadKind = std::conditional_t<std::is_same_v<Kind, Int4>, Int8, Kind>;

 public:
  explicit LlamaDecoder(const mr_model& model)
      : model_(model),
        layers_(model.layers, model.layers + model.num_layers),
        width_(round_up(model.hidden, kAlignK)),
        inner_(round_up(model.intermediate, kColumns)),
        attended_(model.num_heads * model.head_dim) {}

  void run(Team& team, const mr_kv* kv, const mr_batch& batch, const mr_output& out) override {
    reserve(team, batch);
    const std::function<void(Member&)> job = [&](Member& member) {
      embed(member, batch);
      for (long layer = 0; layer < model_.num_layers; ++layer) {
        run_attention(member, layers_[layer], kv[layer], batch);
        if (member.index == 0) *out.progress = *out.progress + 1;
        const bool is_last = layer + 1 == model_.num_layers;
        const void* after = is_last ? Matrix<HeadKind>(model_.head).start(member.index)
                                    : Matrix<Kind>(layers_[layer + 1].qkv).start(member.index);
        run_mlp(member, layers_[layer], batch.num_tokens, after);
        if (member.index == 0) *out.progress = *out.progress + 1;
      }
      run_head(member, batch, out);
      release_tiles();
    };
    team.run(job);
    for (long row = 0; row < batch.num_samples; ++row) {
      Likeliest best;
      for (const auto& found : likeliest_) {
        best.offer(found[row].value, found[row].token);
        best.wrong += found[row].wrong;
      }
      out.likeliest[row] = best.has_token() ? best.token : kNoToken;
    }
    for (long token = 0; token < batch.num_tokens; ++token)
      if (!sound_tokens_[token]) sound_rows_[row_of(batch, token)] = 0;
  }

  const std::vector<uint8_t>& sound_rows() const override { return sound_rows_; }

 private:
  void reserve(Team& team, const mr_batch& batch) {
    const long tokens = batch.num_tokens;
    residual_ = residual_room_.reserve(tokens * width_);
    normed_ = normed_room_.reserve(tokens, width_);
    qkv_width_ = round_up(layers_[0].qkv.columns, kColumns);
    qkv_ = qkv_room_.reserve(tokens * qkv_width_);
    attention_rows_ = attention_room_.reserve(tokens, attended_);
    inner_rows_ = inner_room_.reserve(tokens, inner_);
    if constexpr (kTakesIntegers<Kind>)
      wide_ = wide_room_.reserve(tokens * std::max(attended_, inner_));
    turns_ = turns_room_.reserve(tokens * model_.head_dim);
    scratch_.resize(team.size());
    likeliest_.resize(team.size());
    row_room_.resize(team.size());
    for (int member = 0; member < team.size(); ++member) {
      scratch_[member].reserve(model_.head_dim, model_.head_dim);
      row_room_[member].reserve(std::max({width_, attended_, inner_}) + kAlignK);
      likeliest_[member].assign(batch.num_samples, Likeliest{});
    }
    sound_tokens_.assign(tokens, 1);
    sound_rows_.assign(batch.num_rows, 1);
    plan_attention(team, batch);
  }

  void plan_attention(Team& team, const mr_batch& batch) {
    plans_.clear();
    long partials = 0;
    for (const mr_layer& layer : layers_) {
      if (find_plan(layer.window) != nullptr) continue;
      plans_.emplace_back(layer.window, AttentionPlan{});
      plans_.back().second.build(batch, model_.num_heads, model_.num_kv_heads, layer.window,
                                 team.size());
      partials = std::max(partials, plans_.back().second.num_partial_rows());
    }
    partials_ = partials_room_.reserve(partials * Attend::partial_floats(model_.head_dim));
  }

  const AttentionPlan* find_plan(long window) const {
    for (const auto& [known, plan] : plans_)
      if (known == window) return &plan;
    return nullptr;
  }

  void embed(Member& member, const mr_batch& batch) {
    const long hidden = model_.hidden, half = model_.head_dim / 2;
    each_rows(member, batch.num_tokens, [&](long first, long end) {
      for (long token = first; token < end; ++token) {
        float* to = residual_ + token * width_;
        const long from = batch.input_ids.data[token] * hidden;
        if (model_.embedding_kind == MR_F32)
          std::memcpy(to, static_cast<const float*>(model_.embedding) + from,
                      hidden * sizeof(float));
        else
          for (long i = 0; i < hidden; ++i)
            to[i] = to_float(static_cast<const bf16*>(model_.embedding)[from + i]);
        // Sums ran over it too, and may not have been finite.
        std::fill(to + hidden, to + width_, 0.0f);
        float* turns = turns_ + token * model_.head_dim;
        rotation(batch.positions.data[token], model_.frequencies.data, half, turns, turns + half);
      }
    });
  }

  void run_attention(Member& member, const mr_layer& layer, const mr_kv& kv,
                     const mr_batch& batch) {
    const long tokens = batch.num_tokens;
    norm_rows(member, layer.input_norm.data, tokens);
    const Matrix<Kind> o(layer.o), gate_up(layer.gate_up);
    multiply_rows(member, Matrix<Kind>(layer.qkv), normed_, tokens, o.start(member.index),
                  [&](long panel, long row, const float* values) {
                    std::memcpy(qkv_ + row * qkv_width_ + panel * kColumns, values,
                                kColumns * sizeof(float));
                  });
    each_rows(member, tokens, [&](long first, long end) {
      fetch_places<KvKind, Element>(kv, batch, first, end);
      for (long token = first; token < end; ++token) place_token(layer, kv, batch, token);
    }, tokens_per_put(batch));
    attend(member, layer, kv, batch);
    add_to_residual(member, o, attention_rows_, tokens, gate_up.start(2 * member.index));
  }

  // `after` is what is read when it is done.
  void run_mlp(Member& member, const mr_layer& layer, long tokens, const void* after) {
    const Matrix<Kind> down(layer.down);
    norm_rows(member, layer.post_norm.data, tokens);
    run_inner(member, Matrix<Kind>(layer.gate_up), tokens, down.start(member.index));
    add_to_residual(member, down, inner_rows_, tokens, after);
  }

  void norm_rows(Member& member, const float* weight, long count) {
    float* normed = row_room_[member.index].data();
    each_rows(member, count, [&](long first, long end) {
      for (long row = first; row < end; ++row) {
        rms_norm(residual_ + row * width_, weight, model_.hidden, width_,
                 static_cast<float>(model_.norm_eps), normed);
        put_row(normed_, row, normed, width_);
      }
    });
  }

  // A token's heads: norm and rotation in place, K and V into the cache.
  void place_token(const mr_layer& layer, const mr_kv& kv, const mr_batch& batch, long token) {
    const long dim = model_.head_dim, half = dim / 2;
    float* heads = qkv_ + token * qkv_width_;
    const float* turns = turns_ + token * dim;
    for (long head = 0; head < model_.num_heads + model_.num_kv_heads; ++head) {
      const float* norm = (head < model_.num_heads ? layer.q_norm : layer.k_norm).data;
      float* values = heads + head * dim;
      if (norm != nullptr) {
        float squares = 0.0f;
        for (long i = 0; i < dim; ++i) squares += values[i] * values[i];
        const float scale = 1.0f / std::sqrt(squares / static_cast<float>(dim) +
                                             static_cast<float>(model_.norm_eps));
        for (long i = 0; i < dim; ++i) values[i] *= scale * norm[i];
      }
      rotate(values, turns, turns + half, half);
    }
    const long row = row_of(batch, token);
    const long place = batch.positions.data[token];
    const long tile = tile_of(batch, row, place);
    const float* keys = heads + model_.num_heads * dim;
    const float* values = keys + model_.num_kv_heads * dim;
    for (long head = 0; head < model_.num_kv_heads; ++head)
      KvTile<KvKind, Element>(kv, tile, head)
          .put(kv, place % kTileTokens, keys + head * dim, values + head * dim);
  }

  void attend(Member& member, const mr_layer& layer, const mr_kv& kv, const mr_batch& batch) {
    const AttentionPlan& plan = *find_plan(layer.window);
    const mr_attention how{model_.num_heads, 1.0 / std::sqrt(static_cast<double>(model_.head_dim)),
                           layer.window, 0.0, {nullptr, 0}};
    const Attend attention(kv, how, batch);
    auto& scratch = scratch_[member.index];
    const long dim = model_.head_dim;
    const auto use = [&](long token, long head, const float* values) {
      if constexpr (kTakesIntegers<Kind>) {
        std::memcpy(wide_ + token * attended_ + head * dim, values, dim * sizeof(float));
      } else {
        auto* to = attention_rows_.data + token * attention_rows_.stride + head * dim;
        for (long i = 0; i < dim; ++i) put_number(to + i, values[i]);
      }
    };
    const auto& items = plan.items();
    const Queries queries{qkv_, qkv_width_};
    member.each_ahead(static_cast<long>(items.size()), [&](long item, long next) {
      attention.run(items[item], next < static_cast<long>(items.size()) ? &items[next] : nullptr,
                    queries, scratch, partials_, use);
    });
    if (!plan.merges().empty())
      member.each(static_cast<long>(plan.merges().size()), [&](long item) {
        attention.run_merge(plan.merges()[item], scratch, partials_, use);
      });
    if constexpr (kTakesIntegers<Kind>)
      put_integer_rows(member, attention_rows_, attended_, batch.num_tokens);
  }

  // `wide_` [rows][width] → rows of integers.
  void put_integer_rows(Member& member, const Rows<Kind>& rows, long width, long count) {
    float* padded = row_room_[member.index].data();
    const long padded_width = round_up(width, 32);
    each_rows(member, count, [&](long first, long end) {
      for (long row = first; row < end; ++row) {
        std::memcpy(padded, wide_ + row * width, width * sizeof(float));
        std::fill(padded + width, padded + padded_width, 0.0f);
        put_row(rows, row, padded, padded_width);
      }
    });
  }

  // Gate and up of the same columns lie in neighbouring panels.
  void run_inner(Member& member, const Matrix<Kind>& gate_up, long tokens, const void* after) {
    each_panel(member, gate_up.num_panels() / 2, tokens, [&](const PanelRun& run) {
      const long gate_panel = 2 * run.panel, up_panel = gate_panel + 1, first = run.first;
      const void* next = run.next < 0 ? after : gate_up.panel(2 * run.next);
      alignas(64) float gates[kRunRows * kColumns];
      multiply_panel(gate_up, gate_panel, normed_, first, run.end, gate_up.panel(up_panel),
                     [&](long row, const float* values) {
                       std::memcpy(gates + (row - first) * kColumns, values,
                                   kColumns * sizeof(float));
                     });
      multiply_panel(gate_up, up_panel, normed_, first, run.end, next, [&](long row, const float* up) {
        float* gate = gates + (row - first) * kColumns;
        for (int i = 0; i < kColumns; i += kLanes)
          store(gate + i, mul(silu(load(gate + i)), load(up + i)));
        if constexpr (kTakesIntegers<Kind>)
          std::memcpy(wide_ + row * inner_ + run.panel * kColumns, gate, kColumns * sizeof(float));
        else
          put(inner_rows_.data + row * inner_rows_.stride + run.panel * kColumns, gate, kColumns);
      });
    });
    if constexpr (kTakesIntegers<Kind>) put_integer_rows(member, inner_rows_, inner_, tokens);
  }

  void add_to_residual(Member& member, const Matrix<Kind>& matrix, const Rows<Kind>& rows,
                       long tokens, const void* after) {
    multiply_rows(member, matrix, rows, tokens, after,
                  [&](long panel, long row, const float* values) {
                    float* to = residual_ + row * width_ + panel * kColumns;
                    for (int i = 0; i < kColumns; i += kLanes)
                      store(to + i, add(load(to + i), load(values + i)));
                  });
  }

  void run_head(Member& member, const mr_batch& batch, const mr_output& out) {
    each_rows(member, batch.num_tokens, [&](long first, long end) {
      for (long token = first; token < end; ++token) sound_tokens_[token] = is_sound(token);
    });
    float* normed = row_room_[member.index].data();
    each_rows(member, batch.num_samples, [&](long first, long end) {
      for (long row = first; row < end; ++row) {
        rms_norm(residual_ + batch.sample_indices.data[row] * width_, model_.final_norm.data,
                 model_.hidden, width_, static_cast<float>(model_.norm_eps), normed);
        put_row(normed_, row, normed, width_);
      }
    });
    const Matrix<HeadKind> head(model_.head);
    const long padded_vocab = head.num_panels() * kColumns;
    std::vector<Likeliest>& found = likeliest_[member.index];
    const auto use = [&](long panel, long row, const float* values) {
      const long column = panel * kColumns;
      if (out.wants_logits[row])
        std::memcpy(out.logits + row * padded_vocab + column, values, kColumns * sizeof(float));
      offer_all(found[row], values, std::min<long>(kColumns, model_.vocab - column), column);
    };
    const Rows<HeadKind> rows{normed_.data, normed_.stride, normed_.scales, normed_.sums,
                              normed_.sums_stride};
    multiply_rows(member, head, rows, batch.num_samples, nullptr, use);
  }

  bool is_sound(long token) const {
    const float* values = residual_ + token * width_;
    Vec wrong = zero();
    for (long i = 0; i < width_; i += kLanes) wrong = add(wrong, mul(load(values + i), zero()));
    return sum(wrong) == 0.0f;
  }

  static void offer_all(Likeliest& best, const float* values, long count, long first_token) {
    if (count == kColumns) {
      Vec most = load(values), wrong = wrongness(most);
      for (int i = kLanes; i < kColumns; i += kLanes) {
        const Vec x = load(values + i);
        most = max(most, x);
        wrong = add(wrong, wrongness(x));
      }
      best.wrong += sum(wrong);
      if (highest(most) < best.value) return;
    }
    for (long i = 0; i < count; ++i) {
      best.wrong += std::max(values[i], -FLT_MAX) * 0.0f;
      best.offer(values[i], first_token + i);
    }
  }

  const mr_model model_;
  const std::vector<mr_layer> layers_;
  const long width_;     // hidden, padded
  const long inner_;     // intermediate, padded
  const long attended_;  // heads * head_dim
  long qkv_width_ = 0;

  Buffer<float> residual_room_, qkv_room_, wide_room_, turns_room_, partials_room_;
  RowBuffer<Kind> normed_room_, attention_room_, inner_room_;
  float *residual_ = nullptr, *qkv_ = nullptr, *wide_ = nullptr, *turns_ = nullptr,
        *partials_ = nullptr;
  Rows<Kind> normed_{}, attention_rows_{}, inner_rows_{};
  std::vector<std::pair<long, AttentionPlan>> plans_;
  std::vector<typename Attend::Scratch> scratch_;
  std::vector<Buffer<float>> row_room_;
  std::vector<std::vector<Likeliest>> likeliest_;
  std::vector<uint8_t> sound_tokens_, sound_rows_;
};

}  // namespace millrace
