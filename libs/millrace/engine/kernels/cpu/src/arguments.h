// What the arguments of the interface must be. Each check is made once per call, before the call does
// anything else, and throws `Refusal`; what it lets through, the kernels take without looking again.
#pragma once

#include "millrace_cpu.h"

namespace millrace {

void check_team_size(int64_t size);
void check_present(const char* name, const void* data);

void check_tile(int64_t kind, int64_t key_dim, int64_t value_dim);
void check_panels(int64_t kind, int64_t columns, int64_t k);
void check_pack(int64_t kind, const float* source, int64_t num_source, int64_t columns, int64_t k,
                const void* panels, int64_t bytes);

void check_multiply(const mr_matrix& matrix, const float* in, int64_t num_in, int64_t rows,
                    const float* out, int64_t num_out);
void check_attend(const mr_kv& kv, const mr_attention& how, const mr_batch& batch,
                  const mr_heads& heads);
void check_model(const mr_model& model);
// `kv_kind` is the kind of K/V that the model has seen before, or -1.
void check_run(const mr_model& model, int64_t kv_kind, const mr_kv* kv, int64_t num_kv,
               const mr_batch& batch, const mr_output& out);
void check_draws(const float* logits, int64_t num_logits, int64_t stride, int64_t vocab,
                 const mr_draw* draws, int64_t num_draws, const int64_t* tokens);

}  // namespace millrace
