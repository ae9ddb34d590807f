// Eight floats of AVX2 with FMA, and the conversions of F16C; local to the translation unit that includes it.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gorgon {
namespace {

struct Vector8 {
  static constexpr int kWidth = 8, kKeys = 4;
  __m256 v;
  static Vector8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vector8 set(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  Vector8 operator+(Vector8 b) const { return {_mm256_add_ps(v, b.v)}; }
  Vector8 operator-(Vector8 b) const { return {_mm256_sub_ps(v, b.v)}; }
  Vector8 operator*(Vector8 b) const { return {_mm256_mul_ps(v, b.v)}; }
  static Vector8 fma(Vector8 a, Vector8 b, Vector8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vector8 max(Vector8 a, Vector8 b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where one is NaN
  // 2^n, given n + 1.5 * 2^23
  static Vector8 power_of_two(Vector8 n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f800000)))};
  }
  static Vector8 zero_below(Vector8 x, float limit, Vector8 y) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_LT_OQ), y.v)};
  }
  static Vector8 hide(Vector8 x, const uint8_t* seen, float hidden) {
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(seen)));
    const __m256 hides = _mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes, _mm256_setzero_si256()));
    return {_mm256_blendv_ps(x.v, _mm256_set1_ps(hidden), hides)};
  }
};

// `n` is a multiple of 8.
inline void from_half(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 8)
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
}

inline void to_half(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 8)
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace
}  // namespace gorgon
