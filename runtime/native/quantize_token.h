// Rounds a token's inputs to 8 bits with one scale, as the stock operators do; compiled in every path.
#pragma once
#include <cstdint>
#include <cstring>

#include "matmul_int8.h"

namespace gorgon {
namespace {

// The largest magnitude; not a number where there is none such.
inline float largest_of(const float* x, std::size_t count) {
  std::uint32_t top = 0;  // of the magnitudes' bits, which are ordered as the magnitudes are
  for (std::size_t i = 0; i < count; i++) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    top = bits > top ? bits : top;
  }
  if (top >= 0x7f800000u) top = 0x7fc00000u;
  float largest;
  std::memcpy(&largest, &top, sizeof largest);
  return largest;
}

// A token's values to rows of 4, `stride` bytes apart, zeros at their end.
inline std::int32_t quantize_token(const float* x, std::size_t inputs, float scale, std::int8_t* rows,
                                   std::size_t stride) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers, halves to even
  constexpr std::size_t kPart = 256;
  alignas(64) std::int8_t levels[kPart];
  std::int32_t sum = 0;
  for (std::size_t start = 0; start < inputs; start += kPart) {
    const std::size_t count = inputs - start < kPart ? inputs - start : kPart;
    for (std::size_t i = 0; i < count; i++) {
      const float shifted = x[start + i] / scale + kRound;
      std::int32_t bits;
      std::memcpy(&bits, &shifted, sizeof bits);
      levels[i] = static_cast<std::int8_t>(bits);  // the last byte of the sum is the whole number
      sum += levels[i];
    }
    const std::size_t padded = (count + 3) / 4 * 4;
    for (std::size_t i = count; i < padded; i++) levels[i] = 0;
    for (std::size_t r = 0; r < padded / 4; r++) std::memcpy(rows + (start / 4 + r) * stride, levels + 4 * r, 4);
  }
  return sum;
}

inline void quantize_group(const Int8Weights& w, const float* x, std::size_t stride, std::size_t tokens,
                           std::int8_t* values, float* scales, std::int32_t* offsets) {
  for (std::size_t t = 0; t < tokens; t++) {
    const float* token = x + t * stride;
    scales[t] = largest_of(token, w.shape.inputs) * (1.0f / 127);
    const float divisor = scales[t] > 0 ? scales[t] : 1;
    offsets[t] = -128 * quantize_token(token, w.shape.inputs, divisor, values + 4 * t, 4 * tokens);
  }
}

}  // namespace
}  // namespace gorgon
