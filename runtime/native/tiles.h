// AMX's tile instructions; with GORGON_EMULATE what they do in plain C++, to test the path where no processor has them.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace gorgon {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};  // of a row
  std::uint8_t rows[16] = {};
};

#if defined(GORGON_EMULATE)

thread_local TileConfig tile_config;
thread_local std::uint8_t tile_data[8][16][64];

inline void load_tile_config(const TileConfig& config) { tile_config = config; }

inline void zero_tile(int tile) { std::memset(tile_data[tile], 0, sizeof tile_data[tile]); }

inline void load_tile(int tile, const void* from, std::size_t stride) {
  zero_tile(tile);
  for (int r = 0; r < tile_config.rows[tile]; r++)
    std::memcpy(tile_data[tile][r], static_cast<const std::uint8_t*>(from) + r * stride, tile_config.bytes[tile]);
}

inline void store_tile(int tile, void* to, std::size_t stride) {
  for (int r = 0; r < tile_config.rows[tile]; r++)
    std::memcpy(static_cast<std::uint8_t*>(to) + r * stride, tile_data[tile][r], tile_config.bytes[tile]);
}

// TDPBSUD: sums of 4 products of signed bytes of a's row and unsigned bytes of b's rows.
inline void multiply_tiles(int sums, int a, int b) {
  for (int m = 0; m < tile_config.rows[sums]; m++)
    for (int n = 0; n < tile_config.bytes[sums] / 4; n++) {
      std::int32_t sum;
      std::memcpy(&sum, &tile_data[sums][m][4 * n], 4);
      for (int k = 0; k < tile_config.bytes[a]; k++)
        sum += static_cast<std::int8_t>(tile_data[a][m][k]) * tile_data[b][k / 4][4 * n + k % 4];
      std::memcpy(&tile_data[sums][m][4 * n], &sum, 4);
    }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_zero(tile) zero_tile(tile)
#define _tile_loadd(tile, from, stride) load_tile(tile, from, stride)
#define _tile_stored(tile, to, stride) store_tile(tile, to, stride)
#define _tile_dpbsud(sums, a, b) multiply_tiles(sums, a, b)
inline void release_tiles() {}

#else

// All 64 bytes are the operand: GCC 12's intrinsic names 8 of them, and the stores to the others are dropped.
inline void load_tile_config(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
inline void release_tiles() { _tile_release(); }

#if !defined(__clang__)
// GCC 12's intrinsic does not say that it reads memory: nothing would keep stores to what it loads before it.
#undef _tile_loadd
#define _tile_loadd(tile, from, stride)           \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile \
               : : "r"(static_cast<const void*>(from)), "r"(static_cast<long>(stride)) : "memory")
#endif

#endif

}  // namespace
}  // namespace gorgon
