// How an argument is refused: which one, its value, and what it must be.
#pragma once

#include <cstdint>

namespace millrace {

// Thrown where an argument is refused and caught before the call returns; `reason` has the words.
struct Refusal {
  int64_t code;
};

// Where a value comes from: "layers[3].qkv.columns". Costs nothing until it is put into words.
struct Place {
  const char* name;
  const Place* outer = nullptr;
  int64_t index = -1;
};

// What this thread's last refusal said; empty before the first.
const char* reason();

// `code` is MR_INVALID or MR_UNSUPPORTED; `text` is all there is to say.
[[noreturn]] void refuse(int64_t code, const char* text);
// "… is `value`; it must be `must` `limit`".
[[noreturn]] void refuse_value(const Place& place, int64_t value, const char* must, int64_t limit);
[[noreturn]] void refuse_outside(const Place& place, int64_t value, int64_t least, int64_t most);

inline void expect_between(const Place& place, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) refuse_outside(place, value, least, most);
}
inline void expect_equal(const Place& place, int64_t value, int64_t expected) {
  if (value != expected) refuse_value(place, value, "", expected);
}
inline void expect_at_least(const Place& place, int64_t value, int64_t least) {
  if (value < least) refuse_value(place, value, "at least ", least);
}
void expect_finite(const Place& place, double value, double least);
// A NaN is not between.
void expect_between(const Place& place, double value, double least, double most);
// Memory of numbers of `size` bytes.
void expect_memory(const Place& place, const void* data, int64_t size);

}  // namespace millrace
