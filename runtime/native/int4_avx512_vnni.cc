// AVX-512 with VNNI: 16 outputs in one register, up to 8 tokens for each pass over unpacked weights.
#include <immintrin.h>

#include <cstring>

#include "int4_path.h"
#include "quantize_block.h"

namespace gorgon {
namespace {

constexpr std::size_t kAhead = 3072;  // bytes of weights fetched before they are needed

inline __m512 scales_of(const Int4Weights& w, std::size_t at) {
  if (!w.half) return _mm512_loadu_ps(w.scales.as<float>() + at);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.scales.as<std::uint16_t>() + at)));
}

inline __m512i four(const std::int8_t* values) {
  std::int32_t bits;
  std::memcpy(&bits, values, sizeof bits);
  return _mm512_set1_epi32(bits);
}

// Outputs of N tiles for a group of T tokens. A broadcast of activations serves all N tiles: with one tile, loading them
// and not multiplying is what takes the time. `Unit`: blocks are one unit each.
template <int T, int N, bool Unit>
void tiles_of(const Int4Weights& w, std::size_t tile, const Activations& a) {
  const std::size_t bytes = w.tile_bytes(), units = Unit ? 1 : w.block / kUnit;
  const std::uint8_t* rows = w.nibbles.as<std::uint8_t>() + tile * bytes;
  const std::int8_t* values = a.values;
  const __m512i mask = _mm512_set1_epi8(15);
  __m512 total[T][N];
  for (auto& token : total)
    for (__m512& sum : token) sum = _mm512_setzero_ps();
  for (std::size_t b = 0; b < w.blocks; b++) {
    __m512i sum[T][N];
    for (int t = 0; t < T; t++)
      for (int n = 0; n < N; n++) sum[t][n] = _mm512_set1_epi32(a.offsets[b * T + t]);
    for (std::size_t u = 0; u < units; u++, rows += 256, values += 32 * T)
#pragma GCC unroll 1  // unpacking all rows first would take more registers than there are
      for (int r = 0; r < 4; r++) {
        __m512i low[N], high[N];
        for (int n = 0; n < N; n++) {
          const std::uint8_t* row = rows + n * bytes + r * 64;
          const __m512i both = _mm512_load_si512(row);
          _mm_prefetch(reinterpret_cast<const char*>(row + kAhead), _MM_HINT_T0);
          low[n] = _mm512_and_si512(both, mask);
          high[n] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
        for (int t = 0; t < T; t++) {
          const __m512i input = four(values + (r * T + t) * 4);
          for (int n = 0; n < N; n++) sum[t][n] = _mm512_dpbusd_epi32(sum[t][n], low[n], input);
        }
        for (int t = 0; t < T; t++) {
          const __m512i input = four(values + ((r + 4) * T + t) * 4);
          for (int n = 0; n < N; n++) sum[t][n] = _mm512_dpbusd_epi32(sum[t][n], high[n], input);
        }
      }
    for (int n = 0; n < N; n++) {
      const __m512 scale = scales_of(w, ((tile + n) * w.blocks + b) * kTile);
      for (int t = 0; t < T; t++)
        total[t][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t][n]),
                                      _mm512_mul_ps(scale, _mm512_set1_ps(a.scales[b * T + t])), total[t][n]);
    }
  }
  for (int n = 0; n < N; n++) {
    const std::size_t first = (tile + n) * kTile, left = w.outputs - first;
    const __mmask16 there = left < kTile ? static_cast<__mmask16>((1u << left) - 1) : 0xffff;
    for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(a.out + t * w.outputs + first, there, total[t][n]);
  }
}

constexpr std::size_t kTogether = 2;  // tiles

template <int N, bool Unit>
void tiles_in(const Int4Weights& w, std::size_t tile, const Activations& a) {
  using TilesOf = void (*)(const Int4Weights&, std::size_t, const Activations&);
  constexpr TilesOf kTilesOf[] = {tiles_of<1, N, Unit>, tiles_of<2, N, Unit>, tiles_of<3, N, Unit>,
                                  tiles_of<4, N, Unit>, tiles_of<5, N, Unit>, tiles_of<6, N, Unit>,
                                  tiles_of<7, N, Unit>, tiles_of<8, N, Unit>};
  kTilesOf[a.tokens - 1](w, tile, a);
}

template <int N>
void tiles(const Int4Weights& w, std::size_t tile, const Activations& a) {
  if (w.block == kUnit) return tiles_in<N, true>(w, tile, a);
  tiles_in<N, false>(w, tile, a);
}

void multiply(const Int4Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  std::size_t tile = first;
  for (; tile + kTogether <= last; tile += kTogether)
    for (std::size_t g = 0; g < count; g++) tiles<kTogether>(w, tile, groups[g]);
  for (; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) tiles<1>(w, tile, groups[g]);
}

}  // namespace

const Int4Path kInt4Avx512Vnni = {8, quantize_group, multiply};

}  // namespace gorgon
