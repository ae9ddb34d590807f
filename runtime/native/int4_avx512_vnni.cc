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

template <int T>
void tile_of(const Int4Weights& w, std::size_t tile, const Activations& a) {
  const std::uint8_t* rows = w.nibbles.as<std::uint8_t>() + tile * w.tile_bytes();
  const std::int8_t* values = a.values;
  const __m512i mask = _mm512_set1_epi8(15);
  const std::size_t units = w.block / kUnit;
  __m512 total[T];
  for (int t = 0; t < T; t++) total[t] = _mm512_setzero_ps();
  for (std::size_t b = 0; b < w.blocks; b++) {
    __m512i sum[T];
    for (int t = 0; t < T; t++) sum[t] = _mm512_set1_epi32(a.offsets[b * T + t]);
    for (std::size_t u = 0; u < units; u++, rows += 256, values += 32 * T)
      for (int r = 0; r < 4; r++) {
        const __m512i both = _mm512_load_si512(rows + r * 64);
        _mm_prefetch(reinterpret_cast<const char*>(rows + r * 64 + kAhead), _MM_HINT_T0);
        const __m512i low = _mm512_and_si512(both, mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        for (int t = 0; t < T; t++) sum[t] = _mm512_dpbusd_epi32(sum[t], low, four(values + (r * T + t) * 4));
        for (int t = 0; t < T; t++) sum[t] = _mm512_dpbusd_epi32(sum[t], high, four(values + ((r + 4) * T + t) * 4));
      }
    const __m512 scale = scales_of(w, (tile * w.blocks + b) * kTile);
    for (int t = 0; t < T; t++)
      total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_mul_ps(scale, _mm512_set1_ps(a.scales[b * T + t])),
                                 total[t]);
  }
  const std::size_t left = w.outputs - tile * kTile;
  const __mmask16 there = left < kTile ? static_cast<__mmask16>((1u << left) - 1) : 0xffff;
  for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(a.out + t * w.outputs + tile * kTile, there, total[t]);
}

void multiply(const Int4Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  using TileOf = void (*)(const Int4Weights&, std::size_t, const Activations&);
  constexpr TileOf kTileOf[] = {tile_of<1>, tile_of<2>, tile_of<3>, tile_of<4>,
                                tile_of<5>, tile_of<6>, tile_of<7>, tile_of<8>};
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) kTileOf[groups[g].tokens - 1](w, tile, groups[g]);
}

}  // namespace

const Int4Path kInt4Avx512Vnni = {quantize_group, multiply};

}  // namespace gorgon
