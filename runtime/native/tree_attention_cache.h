// How tree attention turns, writes and reads keys and values in each type of cache. Included by
// tree_attention_kernel.h, for one instruction set.
#include <cmath>
#include <cstring>

#include "tree_attention_work.h"

namespace gorgon {
namespace {

inline int64_t row_offset(const TreeAttention& a, int64_t row, int64_t kv_head) {
  return (row * a.kv_heads + kv_head) * a.capacity;
}

void put(const TreeAttention& a, void* cache, float* scales, int64_t slot, const float* x) {
  const int64_t width = a.head_dim;
  if (a.type == CacheType::kFp32) {
    std::memcpy(static_cast<float*>(cache) + slot * width, x, width * sizeof(float));
  } else if (a.type == CacheType::kFp16) {
    to_half(x, static_cast<uint16_t*>(cache) + slot * width, width);
  } else {
    float top = 0;
    bool finite = true;
    for (int64_t d = 0; d < width; d++) {
      const float size = std::fabs(x[d]);
      finite = finite && size < HUGE_VALF;
      top = size > top ? size : top;
    }
    const float inverse = finite && top > 1e-30f ? 127 / top : 0;  // a smaller vector is 0, one with a NaN is all NaN
    const float scale = finite ? top / 127 : std::nanf("");
    int8_t* q = static_cast<int8_t*>(cache) + slot * width;
    for (int64_t d = 0; d < width; d++)
      q[d] = static_cast<int8_t>(inverse > 0 ? std::nearbyintf(x[d] * inverse) : 0.0f);
    scales[slot] = scale;
  }
}

// `slots` keys or values from `slot` on as floats [slots, head_dim]: the cache itself, or converted into `room`.
const float* get(const TreeAttention& a, const void* cache, const float* scales, int64_t slot, int64_t slots,
                 float* room) {
  const int64_t width = a.head_dim;
  if (a.type == CacheType::kFp32) return static_cast<const float*>(cache) + slot * width;
  if (a.type == CacheType::kFp16) {
    from_half(static_cast<const uint16_t*>(cache) + slot * width, room, slots * width);
    return room;
  }
  const int8_t* q = static_cast<const int8_t*>(cache) + slot * width;
  for (int64_t j = 0; j < slots; j++) {
    const float scale = scales[slot + j];
    for (int64_t d = 0; d < width; d++) room[j * width + d] = static_cast<float>(q[j * width + d]) * scale;
  }
  return room;
}

// Halves turned against each other by the position's angle (Su et al., RoFormer; the layout of Llama's checkpoints).
inline void rotate(const TreeAttention& a, const float* x, int64_t position, float factor, float* y) {
  const int64_t half = a.head_dim / 2;
  const float *c = a.cosine + position * half, *s = a.sine + position * half;
  for (int64_t d = 0; d < half; d++) {
    y[d] = (x[d] * c[d] - x[half + d] * s[d]) * factor;
    y[half + d] = (x[half + d] * c[d] + x[d] * s[d]) * factor;
  }
}

inline const float* projected(const TreeAttention& a, int64_t token, int64_t head) {
  return a.qkv + (token * (a.heads + 2 * a.kv_heads) + head) * a.head_dim;
}

void write(const TreeAttention& a, const Row& row, int64_t kv_head, float* scratch) {
  const int64_t first = row_offset(a, row.index, kv_head) + row.length;
  for (int64_t i = 0; i < row.count; i++) {
    const int64_t token = row.first + i;
    rotate(a, projected(a, token, a.heads + kv_head), row.length + a.depth[token], 1.0f, scratch);
    put(a, a.key, a.key_scale, first + i, scratch);
    put(a, a.value, a.value_scale, first + i, projected(a, token, a.heads + a.kv_heads + kv_head));
  }
}

}  // namespace
}  // namespace gorgon
