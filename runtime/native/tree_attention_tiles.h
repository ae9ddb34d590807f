// What tree attention multiplies: scores of a tile of keys, values by their weights, and the exponential between them.
// Included by tree_attention_kernel.h, for one instruction set.
#include <cstdint>

#include "tree_attention_work.h"

namespace gorgon {
namespace {

constexpr int kTile = Wide::kKeys;     // keys whose scores are made at once
constexpr int64_t kAhead = 3 * kTile;  // keys from those in use to those that are fetched
constexpr int64_t kNear = 16384;       // bytes of values that are added to all queries: half a first-level cache

template <int N>
struct Number {
  static constexpr int value = N;
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// e^x for x <= 0: relative error below 2e-7, 1 at 0 exactly, 0 below -87.3 (the smallest normal number), NaN of NaN.
// Cody and Waite's reduction; the polynomial is that of Cephes' expf (Moshier).
template <class V>
inline V exponential(V x) {
  const V round = V::set(12582912.0f);  // 1.5 * 2^23: what is added to it becomes a whole number
  const V shifted = V::fma(x, V::set(1.44269504088896341f), round), n = shifted - round;
  V r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  V p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, r * r, r + V::set(1.0f));
  return V::zero_below(x, -87.3365447f, p * V::power_of_two(shifted));
}

void exponential_array(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += Wide::kWidth) exponential(Wide::load(x + i)).store(y + i);
}

// Keys [Keys, width] times vectors of queries [Vectors][width][lanes]: scores [keys][stride]. As many bytes are fetched
// at `next` and at `value` meanwhile: with few queries a key is done with before the next one would be there.
template <class V, int Vectors, int Keys>
inline void score_tile(const float* query, const float* key, int64_t width, float* scores, int64_t stride,
                       const float* next, const float* value) {
  V sum[Vectors][Keys];
#pragma GCC unroll 16
  for (int i = 0; i < Vectors; i++)
#pragma GCC unroll 16
    for (int j = 0; j < Keys; j++) sum[i][j] = V::set(0.0f);
  for (int64_t d = 0; d < width; d++) {
    V q[Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; i++) q[i] = V::load(query + (i * width + d) * V::kWidth);
    __builtin_prefetch(next + d * Keys);
    __builtin_prefetch(value + d * Keys, 0, 2);
#pragma GCC unroll 16
    for (int j = 0; j < Keys; j++) {
      const V k = V::set(key[j * width + d]);
#pragma GCC unroll 16
      for (int i = 0; i < Vectors; i++) sum[i][j] = V::fma(k, q[i], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < Keys; j++)
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; i++) sum[i][j].store(scores + j * stride + i * V::kWidth);
}

template <class V, int Vectors>
void score(const float* query, const float* key, const float* value, int64_t width, int64_t slots, float* scores,
           int64_t stride) {
  int64_t j = 0;
  const auto tile = [&](auto keys) {
    constexpr int n = decltype(keys)::value;
    score_tile<V, Vectors, n>(
        query, key + j * width, width, scores + j * stride, stride, key + (j + kAhead) * width, value + j * width);
    j += n;
  };
  while (j + kTile <= slots) tile(Number<kTile>());
  while (j + 4 <= slots) tile(Number<4>());
  while (j < slots) tile(Number<1>());
}

// `slots` values [slots][width], weighted [slots][stride], onto the sums [Queries][width], which first shrink. As
// many bytes are fetched at `next` meanwhile.
template <class V, int Queries, int Vectors, bool Fetch>
inline void add_tile(const float* weight, int64_t stride, const float* value, int64_t width, int64_t slots,
                     const float* shrink, float* sums, const float* next) {
  V sum[Queries][Vectors];
#pragma GCC unroll 16
  for (int q = 0; q < Queries; q++) {
    const V factor = V::set(shrink[q]);
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; i++) sum[q][i] = V::load(sums + q * width + i * V::kWidth) * factor;
  }
  for (int64_t j = 0; j < slots; j++) {
    V v[Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; i++) {
      v[i] = V::load(value + j * width + i * V::kWidth);
      if (Fetch) __builtin_prefetch(next + j * width + i * V::kWidth, 0, 2);
    }
#pragma GCC unroll 16
    for (int q = 0; q < Queries; q++) {
      const V p = V::set(weight[j * stride + q]);
#pragma GCC unroll 16
      for (int i = 0; i < Vectors; i++) sum[q][i] = V::fma(p, v[i], sum[q][i]);
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < Queries; q++)
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; i++) sum[q][i].store(sums + q * width + i * V::kWidth);
}

template <class V, int Vectors>
void add_columns(const float* weight, int64_t stride, int64_t queries, const float* value, int64_t width, int64_t slots,
                 const float* shrink, float* sums, const float* next) {
  int64_t q = 0;
  const auto tile = [&](auto n, auto fetch) {
    constexpr int count = decltype(n)::value;
    add_tile<V, count, Vectors, decltype(fetch)::value != 0>(
        weight + q, stride, value, width, slots, shrink + q, sums + q * width, next);
    q += count;
  };
  if (next != nullptr) queries >= 4 ? tile(Number<4>(), Number<1>()) : tile(Number<1>(), Number<1>());
  while (q + 4 <= queries) tile(Number<4>(), Number<0>());
  while (q < queries) tile(Number<1>(), Number<0>());
}

void add(const float* weight, int64_t stride, int64_t queries, const float* value, int64_t width, int64_t slots,
         const float* shrink, float* sums, const float* next) {
  alignas(64) static constexpr float kKeep[kLanes] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const int64_t step = most(kTile, kNear / (width * static_cast<int64_t>(sizeof(float))));
  for (int64_t j = 0; j < slots; j += step, shrink = kKeep, weight += step * stride, value += step * width) {
    const int64_t n = least(step, slots - j);
    int64_t d = 0;
    const auto columns = [&](auto vector, auto vectors) {
      using V = decltype(vector);
      constexpr int count = decltype(vectors)::value;
      const float* ahead = next != nullptr ? next + d : nullptr;
      add_columns<V, count>(weight, stride, queries, value + d, width, n, shrink, sums + d, ahead);
      d += V::kWidth * count;
    };
    while (d + 4 * Wide::kWidth <= width) columns(Wide(), Number<4>());
    while (d + 2 * Wide::kWidth <= width) columns(Wide(), Number<2>());
    while (d + Wide::kWidth <= width) columns(Wide(), Number<1>());
    while (d < width) columns(Narrow(), Number<1>());
    if (next != nullptr) next += step * width;
  }
}

}  // namespace
}  // namespace gorgon
