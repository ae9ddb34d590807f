// The path of 256-bit registers, with and without VNNI: 8 outputs in one register, up to 4 tokens for each pass.
// Included by the files that are compiled for each.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "fused.h"
#include "int4_path.h"
#include "quantize_block.h"

namespace gorgon {
namespace {

#if defined(GORGON_EMULATE_VNNI)  // AVX-512 has the same instruction in another encoding
inline __m256i dot(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(sum, a, b); }
#elif defined(__AVXVNNI__)
inline __m256i dot(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#endif

// Whole numbers of 32 bits that a unit's products are added to; without VNNI by way of 16 bits, which hold the sum of a
// unit: 8 rows of 2 products of at most 15 * 127.
struct UnitSum {
#if defined(__AVXVNNI__) || defined(GORGON_EMULATE_VNNI)
  explicit UnitSum(__m256i total) : total_(total) {}
  void add(__m256i weights, __m256i inputs) { total_ = dot(total_, weights, inputs); }
  __m256i total() const { return total_; }
  __m256i total_;
#else
  explicit UnitSum(__m256i total) : total_(total), unit_(_mm256_setzero_si256()) {}
  void add(__m256i weights, __m256i inputs) {
    unit_ = _mm256_add_epi16(unit_, _mm256_maddubs_epi16(weights, inputs));
  }
  __m256i total() const { return _mm256_add_epi32(total_, _mm256_madd_epi16(unit_, _mm256_set1_epi16(1))); }
  __m256i total_, unit_;
#endif
};

inline __m256i four(const std::int8_t* values) {
  std::int32_t bits;
  std::memcpy(&bits, values, sizeof bits);
  return _mm256_set1_epi32(bits);
}

inline __m256 scales_of(const Int4Weights& w, std::size_t at) {
  if (!w.half) return _mm256_loadu_ps(w.scales.as<float>() + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales.as<std::uint16_t>() + at)));
}

// A quarter of a tile, 8 outputs, for tokens first .. first + T - 1 of a group.
template <int T>
void quarter_tile(const Int4Weights& w, std::size_t tile, int quarter, const Activations& a, std::size_t first) {
  const std::uint8_t* rows = w.nibbles.as<std::uint8_t>() + tile * w.tile_bytes() + quarter * 32;
  const std::size_t stride = 4 * a.tokens, units = w.block / kUnit;
  const std::int8_t* values = a.values + 4 * first;
  const __m256i mask = _mm256_set1_epi8(15);
  __m256 total[T];
  for (__m256& sum : total) sum = _mm256_setzero_ps();
  for (std::size_t b = 0; b < w.blocks; b++) {
    __m256i sum[T];
    for (int t = 0; t < T; t++) sum[t] = _mm256_set1_epi32(a.offsets[b * a.tokens + first + t]);
    for (std::size_t u = 0; u < units; u++, rows += kUnitBytes, values += 8 * stride)
      for (int t = 0; t < T; t++) {
        UnitSum unit(sum[t]);
        for (int r = 0; r < 4; r++) {
          const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(rows + r * 4 * kTile));
          unit.add(_mm256_and_si256(both, mask), four(values + r * stride + 4 * t));
          unit.add(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), four(values + (r + 4) * stride + 4 * t));
        }
        sum[t] = unit.total();
      }
    const __m256 scale = scales_of(w, (tile * w.blocks + b) * kTile + quarter * 8);
    for (int t = 0; t < T; t++)
      total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]),
                                 _mm256_mul_ps(scale, _mm256_set1_ps(a.scales[b * a.tokens + first + t])), total[t]);
  }
  const std::size_t output = tile * kTile + quarter * 8;
  if (output >= w.shape.places()) return;
  const std::size_t there = std::min<std::size_t>(8, w.shape.places() - output);
  for (int t = 0; t < T; t++) {
    alignas(32) float out[8];
    _mm256_store_ps(out, total[t]);
    std::memcpy(a.place(first + t, output), out, there * sizeof(float));
  }
}

void multiply(const Int4Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  using QuarterTile = void (*)(const Int4Weights&, std::size_t, int, const Activations&, std::size_t);
  constexpr QuarterTile kQuarterTile[] = {quarter_tile<1>, quarter_tile<2>, quarter_tile<3>, quarter_tile<4>};
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++)
      for (std::size_t t = 0; t < groups[g].tokens; t += 4)
        for (int quarter = 0; quarter < 4; quarter++)
          kQuarterTile[std::min<std::size_t>(4, groups[g].tokens - t) - 1](w, tile, quarter, groups[g], t);
}

}  // namespace
}  // namespace gorgon
