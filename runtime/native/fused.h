// What products do besides multiplying: the norm of their inputs, and SiLU of half of their outputs. Compiled in every
// path, with the same result to the bit: every number comes of its own token, in an order of its own.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "product.h"

namespace gorgon {
namespace {

// Lane by lane sums of squares, then lanes in pairs: the same order in registers of any width.
inline float sum_of_squares(const float* x, std::size_t count) {
  constexpr std::size_t kLanes = 64;  // several registers' worth, so that additions do not wait for each other
  alignas(64) float sums[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; lane++) sums[lane] += x[i + lane] * x[i + lane];
  for (std::size_t lane = 0; i + lane < count; lane++) sums[lane] += x[i + lane] * x[i + lane];
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
  return sums[0];
}

// A token's RMS norm: of x + added, which goes to `total`.
inline void normalize_token(const float* x, const float* added, const float* weight, float epsilon, std::size_t count,
                            float* total, float* out) {
  for (std::size_t i = 0; i < count; i++) total[i] = x[i] + added[i];
  const float inverse = 1 / std::sqrt(sum_of_squares(total, count) / static_cast<float>(count) + epsilon);
  for (std::size_t i = 0; i < count; i++) out[i] = total[i] * inverse * weight[i];
}

// e^x, relative error below 2e-7: Cody and Waite's reduction, Cephes' polynomial. 0 < e^x where x < -87, infinite from
// 88.4 on.
inline float power_of_e(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  x = x < 89 ? x : 89;
  x = x > -87 ? x : -87;
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // 2^n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

// SiLU of each token's first kHalf outputs of a tile, times the others: the first `there` of these to out.
inline void gate_tile(const float* tile, std::size_t tokens, std::size_t there, float* out, std::size_t stride) {
  for (std::size_t t = 0; t < tokens; t++, tile += kTile, out += stride) {
    alignas(64) float gated[kHalf];
    for (std::size_t n = 0; n < kHalf; n++) gated[n] = tile[n] / (1 + power_of_e(-tile[n])) * tile[kHalf + n];
    if (there == kHalf)
      std::memcpy(out, gated, sizeof gated);
    else
      std::memcpy(out, gated, there * sizeof(float));
  }
}

}  // namespace
}  // namespace gorgon
