// AMX: matrix products of tiles of 16 rows by 64 bytes.
#pragma once

#include "ahead.h"
#include "kinds.h"

#if defined(MILLRACE_AMX)

#include <algorithm>

#if defined(MILLRACE_EMULATE_AMX)
#include "tiles_emulated.h"
#else
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace millrace {

// Asks the kernel for the tile registers, once per process; false where it refuses.
inline bool prepare_tiles() {
#if defined(MILLRACE_EMULATE_AMX)
  return true;
#else
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#endif
}

// Numbers along K that one tile product takes.
constexpr long kTileK = 32;

// Tiles 0 to 3 are sums (row half times two, column half), 4 and 5 inputs, 6 and 7 weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

inline thread_local int configured_rows = 0;

// Sets the tiles up for this many rows; a thread keeps its set-up until the number changes.
inline void configure_tiles(int rows) {
  if (configured_rows == rows) return;
  TileConfig config;
  const uint8_t upper = static_cast<uint8_t>(std::min(rows, 16));
  const uint8_t lower = static_cast<uint8_t>(std::max(rows - 16, 1));
  const uint8_t heights[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = heights[tile];
    config.row_bytes[tile] = 64;
  }
  _tile_loadconfig(&config);
  configured_rows = rows;
}

inline void dot_tiles(const bf16* a, long stride, int rows, const Part<bf16>* parts, long num_parts,
                      long k, float* out, long out_stride) {
  const long a_bytes = stride * static_cast<long>(sizeof(bf16));
  const long out_bytes = out_stride * static_cast<long>(sizeof(float));
  constexpr long b_bytes = kColumns * 2 * static_cast<long>(sizeof(bf16));
  const bool two = rows > 16;
  configure_tiles(rows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long part = 0; part < num_parts; ++part, a += k) {
    const long ahead = parts[part].ahead;
    for (long i = 0; i < k; i += kTileK) {
      const bf16* b = parts[part].panel + i * kColumns;
      if (ahead != 0) fetch_ahead<kTileK * kColumns * sizeof(bf16)>(b, ahead);
      _tile_loadd(6, b, b_bytes);
      _tile_loadd(7, b + 32, b_bytes);
      _tile_loadd(4, a + i, a_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!two) continue;
      _tile_loadd(5, a + 16 * stride + i, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + 16, out_bytes);
  if (two) {
    _tile_stored(2, out + 16 * out_stride, out_bytes);
    _tile_stored(3, out + 16 * out_stride + 16, out_bytes);
  }
}

// Gives the tiles up, so that the kernel need not save them when it switches threads.
inline void release_tiles() {
  if (configured_rows == 0) return;
  _tile_release();
  configured_rows = 0;
}

}  // namespace millrace

#else

namespace millrace {

inline bool prepare_tiles() { return true; }
inline void release_tiles() {}

}  // namespace millrace

#endif
