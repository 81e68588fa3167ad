#include "refusal.h"

#include <cmath>
#include <cstdio>
#include <string>

#include "millrace_cpu.h"

namespace millrace {

namespace {

thread_local char words[256];

std::string text_of(const Place& place) {
  std::string text = place.outer == nullptr ? "" : text_of(*place.outer) + ".";
  text += place.name;
  if (place.index >= 0) text += "[" + std::to_string(place.index) + "]";
  return text;
}

[[noreturn]] void refuse_text(const Place& place, const std::string& value,
                              const std::string& must) {
  const std::string text = text_of(place) + " is " + value + "; it must be " + must;
  refuse(MR_INVALID, text.c_str());
}

std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace

const char* reason() { return words; }

void refuse(int64_t code, const char* text) {
  std::snprintf(words, sizeof words, "%s", text);
  throw Refusal{code};
}

void refuse_value(const Place& place, int64_t value, const char* must, int64_t limit) {
  refuse_text(place, std::to_string(value), must + std::to_string(limit));
}

void refuse_outside(const Place& place, int64_t value, int64_t least, int64_t most) {
  refuse_text(place, std::to_string(value),
              "from " + std::to_string(least) + " to " + std::to_string(most));
}

void expect_finite(const Place& place, double value, double least) {
  if (!std::isfinite(value)) refuse_text(place, text_of(value), "finite");
  if (value < least) refuse_text(place, text_of(value), "at least " + text_of(least));
}

void expect_between(const Place& place, double value, double least, double most) {
  if (!(value >= least && value <= most))
    refuse_text(place, text_of(value), "from " + text_of(least) + " to " + text_of(most));
}

void expect_memory(const Place& place, const void* data, int64_t size) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  if (data == nullptr) refuse_text(place, "null", "an address");
  if (address % static_cast<uintptr_t>(size) != 0)
    refuse_text(place, std::to_string(address), "a multiple of " + std::to_string(size));
}

}  // namespace millrace
