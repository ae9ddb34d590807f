// Rounds a block of a token's inputs to 8 bits; compiled in every path, with the same result to the bit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "matmul_int4.h"

namespace gorgon {
namespace {

// The block's values to `rows`, as of 4 bytes, `stride` bytes apart. `given` of its inputs are there, the rest is 0.
// A block with an infinity or what is no number gets a scale that is no number.
inline void quantize_block(const float* x, std::size_t given, std::size_t block, std::int8_t* rows, std::size_t stride,
                           float& scale, std::int32_t& offset) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers, halves to even
  constexpr std::size_t kLongest = 256;
  alignas(64) float padded[kLongest];
  alignas(64) std::int8_t levels[kLongest];
  if (given < block) {
    std::memset(padded, 0, block * sizeof(float));
    std::memcpy(padded, x, given * sizeof(float));
    x = padded;
  }
  std::uint32_t top = 0;  // of the magnitudes' bits, which are ordered as the magnitudes are
  for (std::size_t i = 0; i < block; i++) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    top = bits > top ? bits : top;
  }
  if (top >= 0x7f800000u) top = 0x7fc00000u;  // an infinity or no number among them: no number
  float largest;
  std::memcpy(&largest, &top, sizeof largest);
  const float inverse = largest > 0 ? 127 / largest : 0;
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < block; i++) {
    const float shifted = x[i] * inverse + kRound;
    std::int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const std::int8_t level = static_cast<std::int8_t>(bits);  // the last byte of the sum is the whole number
    levels[i] = level;
    sum += level;
  }
  for (std::size_t r = 0; r < block / 4; r++) std::memcpy(rows + r * stride, levels + 4 * r, 4);
  scale = largest * (1.0f / 127);
  offset = -8 * sum;
}

inline void quantize_group(const Int4Weights& w, const float* x, std::size_t stride, std::size_t tokens,
                           std::int8_t* values, float* scales, std::int32_t* offsets) {
  for (std::size_t t = 0; t < tokens; t++)
    for (std::size_t b = 0; b < w.blocks; b++) {
      const std::size_t start = b * w.block, left = w.shape.inputs - start;
      quantize_block(x + t * stride + start, left < w.block ? left : w.block, w.block, values + (start * tokens + 4 * t),
                     4 * tokens, scales[b * tokens + t], offsets[b * tokens + t]);
    }
}

}  // namespace
}  // namespace gorgon
