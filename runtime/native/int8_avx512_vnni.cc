// AVX-512 with VNNI: up to 8 tokens for each pass over the weights.
#include "fused.h"
#include "int8_path.h"
#include "quantize_token.h"
#include "zmm.h"

namespace gorgon {
namespace {

constexpr std::size_t kAhead = 4096;  // bytes of weights fetched before they are needed
// A tile's outputs for a group of T tokens.
template <int T>
void tile_of(const Int8Weights& w, std::size_t tile, const Activations& a) {
  const std::uint8_t* row = w.values.as<std::uint8_t>() + tile * w.tile_bytes();
  const std::int8_t* values = a.values;
  __m512i sum[T][2];
  for (int t = 0; t < T; t++) sum[t][0] = sum[t][1] = _mm512_set1_epi32(a.offsets[t]);
  for (std::size_t r = 0; r < w.width / 4; r++, row += 128, values += 4 * T) {
    __m512i weights[2];
    for (int n = 0; n < 2; n++) {
      weights[n] = _mm512_load_si512(row + n * 64);
      _mm_prefetch(reinterpret_cast<const char*>(row + n * 64 + kAhead), _MM_HINT_T0);
    }
    for (int t = 0; t < T; t++) {
      const __m512i input = four(values + 4 * t);
      for (int n = 0; n < 2; n++) sum[t][n] = _mm512_dpbusd_epi32(sum[t][n], weights[n], input);
    }
  }
  for (int n = 0; n < 2; n++) {
    const std::size_t first = tile * kTile + n * kHalf;
    const __mmask16 there = first_lanes(w.shape.places(), first);
    const __m512 scale = _mm512_load_ps(w.scales.as<float>() + first);
    for (int t = 0; t < T; t++) {
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t][n]), scale);
      _mm512_mask_storeu_ps(a.place(t, first), there, _mm512_mul_ps(product, _mm512_set1_ps(a.scales[t])));
    }
  }
}

void multiply(const Int8Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  using TileOf = void (*)(const Int8Weights&, std::size_t, const Activations&);
  constexpr TileOf kTileOf[] = {tile_of<1>, tile_of<2>, tile_of<3>, tile_of<4>,
                                tile_of<5>, tile_of<6>, tile_of<7>, tile_of<8>};
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) kTileOf[groups[g].tokens - 1](w, tile, groups[g]);
}

}  // namespace

const Int8Path kInt8Avx512Vnni = {8, quantize_group, multiply, normalize_token, gate_tile};

}  // namespace gorgon
