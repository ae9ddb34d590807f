// What the paths of 512-bit registers share.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "matmul_int4.h"

namespace gorgon {
namespace {

// 4 values of a token, for every output of a register.
inline __m512i four(const std::int8_t* values) {
  std::int32_t bits;
  std::memcpy(&bits, values, sizeof bits);
  return _mm512_set1_epi32(bits);
}

// 16 scales, from the one at `at` on.
inline __m512 scales_of(const Int4Weights& w, std::size_t at) {
  if (!w.half) return _mm512_loadu_ps(w.scales.as<float>() + at);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.scales.as<std::uint16_t>() + at)));
}

// Of the 16 outputs from `first` on, those that there are.
inline __mmask16 first_lanes(std::size_t outputs, std::size_t first) {
  if (first >= outputs) return 0;
  return outputs - first < kHalf ? static_cast<__mmask16>((1u << (outputs - first)) - 1) : 0xffff;
}

}  // namespace
}  // namespace gorgon
