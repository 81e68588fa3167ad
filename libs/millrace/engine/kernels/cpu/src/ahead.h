// Memory that is fetched while something else is multiplied.
//
// Cores foresee reads inside a page, not the jump to the next panel or tile, and with several rows
// they would read and multiply by turns. So a product is told how far from its own panel lies what is
// read after it, and asks for a line of that with every line that it uses. Distance 0: nothing known.
#pragma once

#include "lanes.h"

namespace millrace {

constexpr long kLineBytes = 64;

inline long distance(const void* from, const void* to) {
  return to == nullptr ? 0 : static_cast<const char*>(to) - static_cast<const char*>(from);
}

// A stretch of K: a panel, and how far from it lies what is fetched meanwhile.
template <class Weight>
struct Part {
  const Weight* panel;
  long ahead;
};

// Fetches what lies `ahead` bytes after `bytes` of memory in use.
template <long bytes>
inline void fetch_ahead(const void* used, long ahead) {
  for (long line = 0; line < bytes; line += kLineBytes)
    prefetch(static_cast<const char*>(used) + ahead + line);
}

inline void fetch_range(const void* from, long begin, long end) {
  for (long byte = begin; byte < end; byte += kLineBytes)
    prefetch(static_cast<const char*>(from) + byte);
}

}  // namespace millrace
