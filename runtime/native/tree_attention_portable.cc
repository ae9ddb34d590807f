// For any processor: vectors of four as GCC and Clang know them, products rounded before they are added.
#include <cstring>

#include "tree_attention.h"

namespace gorgon {
namespace {

struct Wide {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  static constexpr int kWidth = 4, kKeys = 4;
  Floats v;
  static Wide load(const float* p) {
    Wide x;
    std::memcpy(&x.v, p, sizeof x.v);
    return x;
  }
  static Wide set(float x) { return {Floats{x, x, x, x}}; }
  void store(float* p) const { std::memcpy(p, &v, sizeof v); }
  Wide operator+(Wide b) const { return {v + b.v}; }
  Wide operator-(Wide b) const { return {v - b.v}; }
  Wide operator*(Wide b) const { return {v * b.v}; }
  static Wide fma(Wide a, Wide b, Wide c) { return {a.v * b.v + c.v}; }
  static Wide select(Ints mask, Wide a, Wide b) {
    return {reinterpret_cast<Floats>((mask & reinterpret_cast<Ints>(a.v)) | (~mask & reinterpret_cast<Ints>(b.v)))};
  }
  static Wide max(Wide a, Wide b) { return select(a.v > b.v, a, b); }  // b where one is NaN
  // 2^n, given n + 1.5 * 2^23
  static Wide power_of_two(Wide n) {
    typedef uint32_t Unsigned __attribute__((vector_size(16)));
    return {reinterpret_cast<Floats>((reinterpret_cast<Unsigned>(n.v) << 23) + 0x3f800000u)};
  }
  static Wide zero_below(Wide x, float limit, Wide y) { return select(x.v < set(limit).v, set(0.0f), y); }
  static Wide hide(Wide x, const uint8_t* seen, float hidden) {
    const Ints lanes = {seen[0], seen[1], seen[2], seen[3]};
    return select(lanes == Ints{}, set(hidden), x);
  }
};

using Narrow = Wide;

// IEEE 754 binary16, by its fields.
inline float from_half(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
  if (exponent == 31) bits = sign | 0x7f800000u | fraction << 13;
  float x;
  if (exponent == 0) {
    x = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -x : x;
  }
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (size >> 13 & 0x3ffu));
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (size < 0x38800000u) {  // below the smallest normal number: the sum's last bits are the fraction, rounded
    float y;
    std::memcpy(&y, &size, sizeof y);
    y += 0.5f;
    uint32_t sum;
    std::memcpy(&sum, &y, sizeof sum);
    return static_cast<uint16_t>(sign | (sum - 0x3f000000u));
  }
  const uint32_t rounded = size + 0xfffu + (size >> 13 & 1);  // to the nearest, ties to even
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline void from_half(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = from_half(x[i]);
}

inline void to_half(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = to_half(x[i]);
}

}  // namespace
}  // namespace gorgon

#include "tree_attention_kernel.h"

namespace gorgon {
const Kernels kPortable = {write, attend, merge, exponential_array};
}
