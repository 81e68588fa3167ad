// The token a row draws, where rounding cannot change it (see draw.cpp).
#pragma once

#include "millrace_cpu.h"

namespace millrace {

constexpr int64_t kUndecided = -1;

// The token drawn from `logits` [vocab], or kUndecided. `scratch` [vocab] is used where top_k is.
int64_t draw_token(const float* logits, long vocab, const mr_draw& draw, float* scratch);

}  // namespace millrace
