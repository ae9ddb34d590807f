// float16 without the processor's help.
#pragma once
#include <cstdint>
#include <cstring>

namespace gorgon {

inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
  } else {
    const std::uint32_t bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    std::memcpy(&value, &bits, sizeof value);
  }
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The float16 that is exactly `value`: true, and `half` is set; or there is none.
inline bool to_half(float value, std::uint16_t& half) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000u, exponent = bits >> 23 & 255, fraction = bits & 0x7fffffu;
  if (exponent >= 113 && exponent <= 142) {
    half = static_cast<std::uint16_t>(sign | (exponent - 112) << 10 | fraction >> 13);
  } else if (exponent >= 103 && exponent < 113) {  // a subnormal float16
    half = static_cast<std::uint16_t>(sign | (fraction | 0x800000u) >> (126 - exponent));
  } else if (exponent == 0 && fraction == 0) {
    half = static_cast<std::uint16_t>(sign);
  } else {
    return false;
  }
  return from_half(half) == value;
}

}  // namespace gorgon
