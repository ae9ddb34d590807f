// AVX-512 with VNNI: up to 6 tokens for each pass over unpacked weights. The sums of 8 would take all registers, and their
// spills an eighth of the time.
#include "fused.h"
#include "int4_path.h"
#include "quantize_block.h"
#include "zmm.h"

namespace gorgon {
namespace {

constexpr std::size_t kAhead = 4096;  // bytes of weights fetched before they are needed

// A tile's outputs for a group of T tokens. A broadcast of activations serves both of its halves: with one, loading them
// and not multiplying is what takes the time. `Unit`: blocks are one unit each.
template <int T, bool Unit>
void tile_of(const Int4Weights& w, std::size_t tile, const Activations& a) {
  const std::size_t units = Unit ? 1 : w.block / kUnit;
  const std::uint8_t* rows = w.nibbles.as<std::uint8_t>() + tile * w.tile_bytes();
  const std::int8_t* values = a.values;
  const __m512i mask = _mm512_set1_epi8(15);
  __m512 total[T][2];
  for (auto& token : total) token[0] = token[1] = _mm512_setzero_ps();
  for (std::size_t b = 0; b < w.blocks; b++) {
    __m512i sum[T][2];
    for (int t = 0; t < T; t++) sum[t][0] = sum[t][1] = _mm512_set1_epi32(a.offsets[b * T + t]);
    for (std::size_t u = 0; u < units; u++, values += kUnit * T)
#pragma GCC unroll 1  // unpacking all rows first would take more registers than there are
      for (int r = 0; r < 4; r++, rows += 128) {
        __m512i low[2], high[2];
        for (int n = 0; n < 2; n++) {
          const __m512i both = _mm512_load_si512(rows + n * 64);
          _mm_prefetch(reinterpret_cast<const char*>(rows + n * 64 + kAhead), _MM_HINT_T0);
          low[n] = _mm512_and_si512(both, mask);
          high[n] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
        for (int t = 0; t < T; t++) {
          const __m512i input = four(values + (r * T + t) * 4);
          for (int n = 0; n < 2; n++) sum[t][n] = _mm512_dpbusd_epi32(sum[t][n], low[n], input);
        }
        for (int t = 0; t < T; t++) {
          const __m512i input = four(values + ((r + 4) * T + t) * 4);
          for (int n = 0; n < 2; n++) sum[t][n] = _mm512_dpbusd_epi32(sum[t][n], high[n], input);
        }
      }
    for (int n = 0; n < 2; n++) {
      const __m512 scale = scales_of(w, (tile * w.blocks + b) * kTile + n * kHalf);
      for (int t = 0; t < T; t++)
        total[t][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t][n]),
                                      _mm512_mul_ps(scale, _mm512_set1_ps(a.scales[b * T + t])), total[t][n]);
    }
  }
  for (int n = 0; n < 2; n++) {
    const std::size_t first = tile * kTile + n * kHalf;
    const __mmask16 there = first_lanes(w.shape.places(), first);
    for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(a.place(t, first), there, total[t][n]);
  }
}

template <bool Unit>
void tile_in(const Int4Weights& w, std::size_t tile, const Activations& a) {
  using TileOf = void (*)(const Int4Weights&, std::size_t, const Activations&);
  constexpr TileOf kTileOf[] = {tile_of<1, Unit>, tile_of<2, Unit>, tile_of<3, Unit>, tile_of<4, Unit>,
                                tile_of<5, Unit>, tile_of<6, Unit>};
  kTileOf[a.tokens - 1](w, tile, a);
}

void multiply(const Int4Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  const auto tile_of_group = w.block == kUnit ? tile_in<true> : tile_in<false>;
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) tile_of_group(w, tile, groups[g]);
}

}  // namespace

const Int4Path kInt4Avx512Vnni = {6, quantize_group, multiply, normalize_token, gate_tile};

}  // namespace gorgon
