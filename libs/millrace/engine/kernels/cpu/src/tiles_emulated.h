// The AMX instructions in plain code, so that the tile path can be tested on any machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "bfloat16.h"

namespace millrace::emulated {

struct Tile {
  alignas(64) uint8_t bytes[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local uint8_t tile_rows[8];

inline void load_config(const void* config) {
  std::memcpy(tile_rows, static_cast<const uint8_t*>(config) + 48, sizeof tile_rows);
}

inline void load(int tile, const void* from, long stride) {
  for (int row = 0; row < tile_rows[tile]; ++row)
    std::memcpy(tiles[tile].bytes[row], static_cast<const uint8_t*>(from) + row * stride, 64);
}

inline void store(int tile, void* to, long stride) {
  for (int row = 0; row < tile_rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles[tile].bytes[row], 64);
}

inline void clear(int tile) { std::memset(&tiles[tile], 0, sizeof(Tile)); }

inline void dot_bf16(int sum, int a, int b) {
  for (int row = 0; row < tile_rows[sum]; ++row) {
    auto* out = reinterpret_cast<float*>(tiles[sum].bytes[row]);
    const auto* left = reinterpret_cast<const bf16*>(tiles[a].bytes[row]);
    for (int k = 0; k < 16; ++k) {
      const auto* right = reinterpret_cast<const bf16*>(tiles[b].bytes[k]);
      for (int n = 0; n < 16; ++n) {
        out[n] += to_float(left[2 * k]) * to_float(right[2 * n]);
        out[n] += to_float(left[2 * k + 1]) * to_float(right[2 * n + 1]);
      }
    }
  }
}

}  // namespace millrace::emulated

// The compiler's header has macros of these names for every machine.
#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_loadconfig(config) ::millrace::emulated::load_config(config)
#define _tile_loadd(tile, from, stride) ::millrace::emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) ::millrace::emulated::store(tile, to, stride)
#define _tile_zero(tile) ::millrace::emulated::clear(tile)
#define _tile_dpbf16ps(sum, a, b) ::millrace::emulated::dot_bf16(sum, a, b)
#define _tile_release() static_cast<void>(0)
