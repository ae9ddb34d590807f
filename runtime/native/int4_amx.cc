// AMX: half a tile, 16 outputs, is unpacked once for up to 32 tokens. Compiled here, and chosen where the processor has it.
#include <algorithm>

#include "fused.h"
#include "int4_path.h"
#include "quantize_block.h"
#include "tiles.h"
#include "zmm.h"

namespace gorgon {
namespace {

constexpr std::size_t kAhead = 4096;  // bytes of weights fetched before they are needed

// 0, 1: sums of the first and second group; 2: weights; 3, 4: values of the first and second group.
// `depth` inputs are multiplied at a time: a unit, or two where a block has as many.
void configure(std::size_t first, std::size_t second, std::size_t depth) {
  TileConfig config;
  const std::size_t tokens[] = {first, std::max<std::size_t>(1, second)};
  for (int g = 0; g < 2; g++) {
    config.rows[g] = config.rows[3 + g] = static_cast<std::uint8_t>(tokens[g]);
    config.bytes[g] = 64;
    config.bytes[3 + g] = static_cast<std::uint16_t>(depth);
  }
  config.rows[2] = static_cast<std::uint8_t>(depth / 4);
  config.bytes[2] = 64;
  load_tile_config(config);
}

// A unit's 8 rows of 64 bytes: inputs 0 .. 15 from the low nibbles, 16 .. 31 from the high ones.
inline void unpack(const std::uint8_t* rows, std::uint8_t* out) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int r = 0; r < 4; r++, rows += 4 * kTile) {
    const __m512i both = _mm512_load_si512(rows);
    _mm_prefetch(reinterpret_cast<const char*>(rows + kAhead), _MM_HINT_T0);
    _mm512_store_si512(out + r * 64, _mm512_and_si512(both, mask));
    _mm512_store_si512(out + (r + 4) * 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
  }
}

inline void add_block(const Activations& a, std::size_t b, __m512 scale, const std::int32_t* sums, __m512* total) {
  for (std::size_t t = 0; t < a.tokens; t++) {
    const __m512i offset = _mm512_set1_epi32(a.offsets[b * a.tokens + t]);
    const __m512i sum = _mm512_add_epi32(_mm512_load_si512(sums + t * 16), offset);
    total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, _mm512_set1_ps(a.scales[b * a.tokens + t])),
                               total[t]);
  }
}

inline void store(const Int4Weights& w, std::size_t first, const Activations& a, const __m512* total) {
  const __mmask16 there = first_lanes(w.shape.places(), first);
  for (std::size_t t = 0; t < a.tokens; t++)
    _mm512_mask_storeu_ps(a.place(t, first), there, total[t]);
}

// Half a tile's outputs for one group, or for two.
void half_tile(const Int4Weights& w, std::size_t tile, std::size_t half, std::size_t depth, const Activations& a,
               const Activations* more) {
  alignas(64) std::uint8_t weights[1024];
  alignas(64) std::int32_t sums[2][256];
  __m512 total[2][16];
  for (auto& group : total)
    for (__m512& sum : group) sum = _mm512_setzero_ps();
  const std::uint8_t* rows = w.nibbles.as<std::uint8_t>() + tile * w.tile_bytes() + half * 64;
  for (std::size_t b = 0; b < w.blocks; b++) {
    _tile_zero(0);
    _tile_zero(1);
    for (std::size_t k = b * w.block; k < (b + 1) * w.block; k += depth) {
      for (std::size_t u = 0; u < depth / kUnit; u++, rows += kUnitBytes) unpack(rows, weights + u * 512);
      _tile_loadd(2, weights, 64);
      _tile_loadd(3, a.values + k, w.width);
      _tile_dpbsud(0, 3, 2);
      if (more != nullptr) {
        _tile_loadd(4, more->values + k, w.width);
        _tile_dpbsud(1, 4, 2);
      }
    }
    const __m512 scale = scales_of(w, (tile * w.blocks + b) * kTile + half * kHalf);
    _tile_stored(0, sums[0], 64);
    add_block(a, b, scale, sums[0], total[0]);
    if (more != nullptr) {
      _tile_stored(1, sums[1], 64);
      add_block(*more, b, scale, sums[1], total[1]);
    }
  }
  const std::size_t first = tile * kTile + half * kHalf;
  store(w, first, a, total[0]);
  if (more != nullptr) store(w, first, *more, total[1]);
}

void multiply(const Int4Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  const std::size_t depth = w.block % (2 * kUnit) ? kUnit : 2 * kUnit;
  for (std::size_t g = 0; g < count; g += 2) {
    const Activations* more = g + 1 < count ? &groups[g + 1] : nullptr;
    configure(groups[g].tokens, more ? more->tokens : 0, depth);
    for (std::size_t tile = first; tile < last; tile++)
      for (std::size_t half = 0; half < 2; half++) half_tile(w, tile, half, depth, groups[g], more);
  }
  release_tiles();
}

// Values of a token side by side: [tokens][inputs], not interleaved.
void quantize(const Int4Weights& w, const float* x, std::size_t stride, std::size_t tokens, std::int8_t* values,
              float* scales, std::int32_t* offsets) {
  for (std::size_t t = 0; t < tokens; t++)
    for (std::size_t b = 0; b < w.blocks; b++) {
      const std::size_t start = b * w.block, left = w.shape.inputs - start;
      quantize_block(x + t * stride + start, std::min(left, w.block), w.block, values + t * w.width + start, 4,
                     scales[b * tokens + t], offsets[b * tokens + t]);
    }
}

}  // namespace

const Int4Path kInt4Amx = {16, quantize, multiply, normalize_token, gate_tile};

}  // namespace gorgon
