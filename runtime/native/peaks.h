// The largest logit of each part of a row; compiled for each path's instructions.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gorgon {

constexpr std::size_t kPart = 64;  // logits of a part

extern void (*const kPeaksPortable)(const float* logits, std::size_t parts, std::int32_t* peaks);
#if defined(__x86_64__)
extern void (*const kPeaksAvx2)(const float* logits, std::size_t parts, std::int32_t* peaks);
extern void (*const kPeaksAvx512)(const float* logits, std::size_t parts, std::int32_t* peaks);
#endif

namespace {

// Whole numbers in the order of the floats, of which both zeros are one: they compare in vectors, and what is no number
// has a place among them.
inline std::int32_t order(float x) {
  x += 0.0f;  // -0 becomes 0
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}

inline void find_peaks(const float* logits, std::size_t parts, std::int32_t* peaks) {
  for (std::size_t part = 0; part < parts; part++, logits += kPart) {
    std::int32_t top = order(logits[0]);
    for (std::size_t i = 1; i < kPart; i++) top = std::max(top, order(logits[i]));
    peaks[part] = top;
  }
}

}  // namespace
}  // namespace gorgon
