// The C interface of the CPU kernels, called from Python through ctypes.
//
// All numbers of the interface are 64 bits wide or pointers, so that the Python side cannot get the
// padding wrong. Every function looks at all its arguments before it reads or writes anything else:
// memory comes with its size, and whatever would be read or written beyond it is MR_INVALID. Nothing
// is thrown through here.
#pragma once

#include <stdint.h>

#define MR_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { MR_F32 = 0, MR_BF16 = 1, MR_INT8 = 2, MR_INT4 = 3 };
// What functions return; `mr_reason` tells more of the last two.
enum { MR_OK = 0, MR_OUT_OF_MEMORY = 1, MR_UNSUPPORTED = 2, MR_INVALID = 3 };

typedef struct {
  const float* data;
  int64_t count;
} mr_floats;

typedef struct {
  const int64_t* data;
  int64_t count;
} mr_numbers;

// A matrix [columns, k] in panels (see kinds.h), which take `mr_panel_bytes`. `bias` may be null; it
// is padded to whole panels.
typedef struct {
  const void* panels;
  int64_t bytes;
  mr_floats bias;
  int64_t kind;
  int64_t columns;
  int64_t k;
} mr_matrix;

// A decoder layer. Norm weights are padded with zeros to a multiple of 64; q_norm and k_norm
// [head_dim] may be null. The panels of gate and up alternate. `window` 0: none.
typedef struct {
  mr_floats input_norm;
  mr_matrix qkv;
  mr_floats q_norm;
  mr_floats k_norm;
  mr_matrix o;
  mr_floats post_norm;
  mr_matrix gate_up;
  mr_matrix down;
  int64_t window;
} mr_layer;

// `embedding` is [vocab, hidden] of kind MR_F32 or MR_BF16, `frequencies` [head_dim / 2]. The head is of
// the layers' kind, or MR_INT8 where they are of MR_INT4.
typedef struct {
  int64_t num_layers;
  int64_t hidden;
  int64_t intermediate;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t vocab;
  int64_t embedding_kind;
  double norm_eps;
  const void* embedding;
  int64_t embedding_bytes;
  mr_floats frequencies;
  mr_floats final_norm;
  mr_matrix head;
  const mr_layer* layers;
} mr_model;

// The paged K/V of one layer: [blocks of 32 tokens][kv head][bytes of a head's tile].
typedef struct {
  void* data;
  int64_t bytes;
  int64_t kind;
  int64_t num_kv_heads;
  int64_t key_dim;
  int64_t value_dim;
} mr_kv;

// A flattened batch of R rows and T tokens. Positions of a row rise by one up to its context's last.
// Tables [R, table_width] hold numbers of blocks of `tiles_per_block` times 32 tokens. `mr_attend`
// needs neither `input_ids` nor `sample_indices`.
typedef struct {
  int64_t num_rows;
  int64_t num_tokens;
  int64_t num_samples;
  int64_t table_width;
  int64_t tiles_per_block;
  mr_numbers input_ids;
  mr_numbers positions;
  mr_numbers cu_seqlens_q;
  mr_numbers context_lens;
  mr_numbers block_tables;
  mr_numbers sample_indices;
} mr_batch;

// How one layer of a model attends; `softcap` 0 and `sinks` null: none.
typedef struct {
  int64_t num_heads;
  double scale;
  int64_t window;
  double softcap;
  mr_floats sinks;
} mr_attention;

// What a layer attends to: q [T, heads, key_dim], k [T, kv heads, key_dim], v [T, kv heads, value_dim].
// Results go to `out` [T, heads, value_dim], which has room for `num_out`.
typedef struct {
  mr_floats q;
  mr_floats k;
  mr_floats v;
  float* out;
  int64_t num_out;
} mr_heads;

// Where the results of a step go. `logits` [samples, padded vocab] is filled for the rows whose
// `wants_logits` is not 0; `likeliest` [samples] for all. `progress` rises twice with every layer.
typedef struct {
  const uint8_t* wants_logits;
  int64_t num_wanted;
  float* logits;
  int64_t num_logits;
  int64_t* likeliest;
  int64_t num_likeliest;
  volatile int64_t* progress;
} mr_output;

// One token to draw from row `row` of the logits; top_k 0, top_p 1, min_p 0: none. Seed, position and
// choice are as the sampler counts them.
typedef struct {
  int64_t row;
  uint64_t seed;
  int64_t position;
  int64_t choice;
  int64_t top_k;
  double temperature;
  double top_p;
  double min_p;
} mr_draw;

MR_API int64_t mr_abi(void);

// Which argument the last refused call of this thread had, its value, and what it must be: one line.
MR_API const char* mr_reason(void);

MR_API int64_t mr_team_create(int64_t size, void** team);
MR_API void mr_team_destroy(void* team);

// Bytes, or an error code with its sign turned.
MR_API int64_t mr_tile_bytes(int64_t kind, int64_t key_dim, int64_t value_dim);
MR_API int64_t mr_panel_bytes(int64_t kind, int64_t columns, int64_t k);
// Packs `source` [columns, k] float32 into `bytes` of panels.
MR_API int64_t mr_pack(int64_t kind, const float* source, int64_t num_source, int64_t columns, int64_t k,
                void* panels, int64_t bytes);

// out [rows, padded columns] = in [rows, k] * matrix.
MR_API int64_t mr_multiply(void* team, const mr_matrix* matrix, const float* in, int64_t num_in,
                    int64_t rows, float* out, int64_t num_out);

// Writes k and v into the cache and attends; all float32.
MR_API int64_t mr_attend(void* team, const mr_kv* kv, const mr_attention* how, const mr_batch* batch,
                  const mr_heads* heads);

// What `model` points to must stay as it is until the model is destroyed; the structures need not.
MR_API int64_t mr_model_create(const mr_model* model, void** created);
MR_API void mr_model_destroy(void* model);
// One step of the whole model, with the K/V of every layer. All K/V is of one kind, in every call.
MR_API int64_t mr_model_run(void* model, void* team, const mr_kv* kv, int64_t num_kv,
                     const mr_batch* batch, const mr_output* out);

// `is_sound` [rows of the last run's batch]: 0 for a row of which something is not finite that this
// run computed. The likeliest token of a row whose logits are not finite is -1.
MR_API int64_t mr_model_sound_rows(const void* model, uint8_t* is_sound, int64_t num_rows);

// `tokens` [draws]: the token of each, or -1 where rounding could change it or logits or temperature
// are not plain numbers. Row r of the logits begins at r * stride and has `vocab` of them.
MR_API int64_t mr_draw_tokens(void* team, const float* logits, int64_t num_logits, int64_t stride,
                              int64_t vocab, const mr_draw* draws, int64_t num_draws,
                              int64_t* tokens);

#ifdef __cplusplus
}
#endif
