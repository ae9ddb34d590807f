// AVX-512 with VNNI: two tiles of 16 outputs for up to 8 tokens for each pass over the weights.
#include <immintrin.h>

#include <cstring>

#include "int8_path.h"
#include "quantize_token.h"

namespace gorgon {
namespace {

constexpr std::size_t kAhead = 4096;  // bytes of weights fetched before they are needed
constexpr std::size_t kTogether = 2;  // tiles

inline __m512i four(const std::int8_t* values) {
  std::int32_t bits;
  std::memcpy(&bits, values, sizeof bits);
  return _mm512_set1_epi32(bits);
}

// Outputs of N tiles for a group of T tokens.
template <int T, int N>
void tiles_of(const Int8Weights& w, std::size_t tile, const Activations& a) {
  const std::size_t bytes = w.tile_bytes();
  const std::uint8_t* row = w.values.as<std::uint8_t>() + tile * bytes;
  const std::int8_t* values = a.values;
  __m512i sum[T][N];
  for (int t = 0; t < T; t++)
    for (int n = 0; n < N; n++) sum[t][n] = _mm512_set1_epi32(a.offsets[t]);
  for (std::size_t r = 0; r < w.width / 4; r++, row += 64, values += 4 * T) {
    __m512i weights[N];
    for (int n = 0; n < N; n++) {
      weights[n] = _mm512_load_si512(row + n * bytes);
      _mm_prefetch(reinterpret_cast<const char*>(row + n * bytes + kAhead), _MM_HINT_T0);
    }
    for (int t = 0; t < T; t++) {
      const __m512i input = four(values + 4 * t);
      for (int n = 0; n < N; n++) sum[t][n] = _mm512_dpbusd_epi32(sum[t][n], weights[n], input);
    }
  }
  for (int n = 0; n < N; n++) {
    const std::size_t first = (tile + n) * kTile, left = w.outputs - first;
    const __mmask16 there = left < kTile ? static_cast<__mmask16>((1u << left) - 1) : 0xffff;
    const __m512 scale = _mm512_load_ps(w.scales.as<float>() + first);
    for (int t = 0; t < T; t++) {
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t][n]), scale);
      _mm512_mask_storeu_ps(a.out + t * w.outputs + first, there, _mm512_mul_ps(product, _mm512_set1_ps(a.scales[t])));
    }
  }
}

template <int N>
void tiles(const Int8Weights& w, std::size_t tile, const Activations& a) {
  using TilesOf = void (*)(const Int8Weights&, std::size_t, const Activations&);
  constexpr TilesOf kTilesOf[] = {tiles_of<1, N>, tiles_of<2, N>, tiles_of<3, N>, tiles_of<4, N>,
                                  tiles_of<5, N>, tiles_of<6, N>, tiles_of<7, N>, tiles_of<8, N>};
  kTilesOf[a.tokens - 1](w, tile, a);
}

void multiply(const Int8Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  std::size_t tile = first;
  for (; tile + kTogether <= last; tile += kTogether)
    for (std::size_t g = 0; g < count; g++) tiles<kTogether>(w, tile, groups[g]);
  for (; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) tiles<1>(w, tile, groups[g]);
}

}  // namespace

const Int8Path kInt8Avx512Vnni = {8, quantize_group, multiply};

}  // namespace gorgon
