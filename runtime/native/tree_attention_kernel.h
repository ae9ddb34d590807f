// Tree attention over the vectors of one instruction set. Each of its translation units defines Wide and Narrow (vectors of
// floats, Narrow at most 8 long) and the conversions from_half and to_half in namespace gorgon::(anonymous), and then
// includes this file: all is local, so that no code for one processor is taken for another. No templates of the standard
// library are used here for the same reason.
//
// Queries lie across a vector's lanes while scores are made (a key's element is broadcast), head elements while values are
// added (a weight is broadcast). So each score, each weight and each sum is made by the same operations in the same
// order whatever the number of queries and whichever vector is used.
#include <cmath>
#include <cstring>

#include "tree_attention_work.h"

namespace gorgon {
namespace {

constexpr float kLowest = -3.402823466e38f;  // before any key: finite, so that no difference is NaN
constexpr float kHidden = -HUGE_VALF;        // score of a key that must not be seen: weight exactly 0
constexpr int kTile = Wide::kKeys;           // keys whose scores are made at once
constexpr int64_t kAhead = 3 * kTile;          // keys from those in use to those that are fetched
constexpr int64_t kNear = 16384;             // bytes of values that are added to all queries: half a first-level cache

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
  const V shifted = V::fma(x, V::set(1.44269504088896341f), V::set(12582912.0f));  // 1.5 * 2^23: rounds to a whole number
  const V n = shifted - V::set(12582912.0f);
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

// ---- the cache ----

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
const float* get(const TreeAttention& a, const void* cache, const float* scales, int64_t slot, int64_t slots, float* room) {
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

// ---- scores ----

// Keys [Keys, width] times vectors of queries [Vectors][width][lanes]: scores [keys][stride]. As many bytes are fetched
// at `next` and at `value` meanwhile: with few queries a key is done with before the next one would be there.
template <class V, int Vectors, int Keys>
inline void score_tile(
    const float* query, const float* key, int64_t width, float* scores, int64_t stride, const float* next, const float* value) {
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

// ---- values ----

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
      add_columns<V, decltype(vectors)::value>(weight, stride, queries, value + d, width, n, shrink, sums + d, next != nullptr ? next + d : nullptr);
      d += V::kWidth * decltype(vectors)::value;
    };
    while (d + 4 * Wide::kWidth <= width) columns(Wide(), Number<4>());
    while (d + 2 * Wide::kWidth <= width) columns(Wide(), Number<2>());
    while (d + Wide::kWidth <= width) columns(Wide(), Number<1>());
    while (d < width) columns(Narrow(), Number<1>());
    if (next != nullptr) next += step * width;
  }
}

// ---- one piece of work ----

// Bytes that say from which lane on a key is seen: kSteps + kLanes - n is seen from lane n on.
struct Steps {
  uint8_t seen[2 * kLanes];
  constexpr Steps() : seen() {
    for (int64_t i = 0; i < 2 * kLanes; i++) seen[i] = i >= kLanes;
  }
};
constexpr Steps kSteps;

// Where a piece of work keeps what it works on; lanes are its queries, padded.
struct Room {
  int64_t queries, lanes, group;
  float* query;    // [lanes / vector][head_dim][vector], turned and scaled
  float* sums;     // of the segment: [lanes][head_dim] values, [lanes] maxima, [lanes] sums of weights
  float* totals;   // of the segments so far
  float* scores;   // [slots][vectors at once * vector], then weights
  float* shrink;   // [kLanes]
  float* turned;   // [head_dim]
  float* keys;     // [slots][head_dim] converted
  float* values;
  uint8_t* seen;   // [count][lanes], of a tree

  Room(const TreeAttention& a, const Work& w, float* scratch)
      : queries(gorgon::queries(a, w)), lanes(round_up(queries, kLanes)), group(a.heads / a.kv_heads) {
    const int64_t slots = kBlock + (w.row->chain ? 0 : w.row->count);
    const auto take = [&scratch](int64_t n) { float* at = scratch; scratch += n; return at; };
    query = take(lanes * a.head_dim);
    sums = take(partial_size(a, w));
    totals = take(partial_size(a, w));
    scores = take(slots * kLanes);
    shrink = take(kLanes);
    turned = take(a.head_dim);
    keys = take(a.type == CacheType::kFp32 ? 0 : slots * a.head_dim);
    values = take(a.type == CacheType::kFp32 ? 0 : slots * a.head_dim);
    seen = reinterpret_cast<uint8_t*>(scratch);
  }
  template <class Part>
  Part* maxima(const TreeAttention& a, Part* part) const { return part + lanes * a.head_dim; }
  template <class Part>
  Part* weights(const TreeAttention& a, Part* part) const { return part + lanes * (a.head_dim + 1); }

  void clear(const TreeAttention& a, float* part) const {
    std::memset(part, 0, lanes * a.head_dim * sizeof(float));
    for (int64_t i = 0; i < lanes; i++) maxima(a, part)[i] = kLowest, weights(a, part)[i] = 0;
  }
};

template <class V>
void pack_queries(const TreeAttention& a, const Work& w, const Room& room) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  const int64_t used = round_up(room.queries, V::kWidth);
  for (int64_t i = 0; i < used; i++) {
    float* to = room.query + i / V::kWidth * V::kWidth * a.head_dim + i % V::kWidth;
    if (i < room.queries) {
      const int64_t token = w.row->first + w.first + i / room.group, head = w.kv_head * room.group + i % room.group;
      rotate(a, projected(a, token, head), w.row->length + a.depth[token], scale, room.turned);
      for (int64_t d = 0; d < a.head_dim; d++) to[d * V::kWidth] = room.turned[d];
    } else {
      for (int64_t d = 0; d < a.head_dim; d++) to[d * V::kWidth] = 0;
    }
  }
}

// Turns what the tree says of nodes into what it says of lanes; a padded lane sees the last node's.
void spread_ancestors(const TreeAttention& a, const Work& w, const Room& room) {
  for (int64_t i = 0; i < w.nodes; i++) {
    const uint8_t* ancestors = a.ancestors + (w.row->index * a.nodes + w.first + i) * a.nodes;
    const int64_t lane = i * room.group, wide = i + 1 < w.nodes ? room.group : room.lanes - lane;
    for (int64_t j = 0; j < w.row->count; j++) std::memset(room.seen + j * room.lanes + lane, ancestors[j], wide);
  }
}

// Slots of a block that some query of lanes [lane, end) may see.
struct Slots {
  int64_t from, to;
};

inline Slots slots_of(const Work& w, const Room& room, int64_t block, int64_t end) {
  const Row& row = *w.row;
  const int64_t from = block * kBlock;
  if (from + kBlock <= row.length) return {from, from + kBlock};
  if (row.chain) {
    const int64_t last = w.first + (least(end, room.queries) - 1) / room.group;
    return {from, least(from + kBlock, row.length + last + 1)};
  }
  return {least(from, row.length), row.length + row.count};  // a node's slot says nothing of its position
}

// Hides from a vector of queries what it must not see of slots [from, to).
template <class V>
void hide(const TreeAttention& a, const Work& w, const Room& room, int64_t block, Slots slots, int64_t lane, float* scores,
          int64_t stride) {
  const Row& row = *w.row;
  for (int64_t j = most(slots.from, row.length); j < slots.to; j++) {
    float* s = scores + (j - slots.from) * stride;
    const int64_t node = j - row.length;
    if (row.chain) {
      const int64_t first = (node - w.first) * room.group - lane;  // the first lane that sees it
      if (first > 0) V::hide(V::load(s), kSteps.seen + kLanes - least(first, kLanes), kHidden).store(s);
    } else if ((row.length + a.depth[row.first + node]) / kBlock == block) {
      V::hide(V::load(s), room.seen + node * room.lanes + lane, kHidden).store(s);
    } else {
      V::set(kHidden).store(s);
    }
  }
}

// Scores become weights; maxima and sums of weights follow. What was summed before has to shrink by room.shrink.
template <class V>
void soften(float* scores, int64_t slots, int64_t stride, float* maximum, float* weight, float* shrink) {
  const V before = V::load(maximum);
  V top = before;
  for (int64_t j = 0; j < slots; j++) top = V::max(top, V::load(scores + j * stride));
  const V factor = exponential(before - top);
  V sum = V::load(weight) * factor;
  for (int64_t j = 0; j < slots; j++) {
    const V p = exponential(V::load(scores + j * stride) - top);
    p.store(scores + j * stride);
    sum = sum + p;
  }
  top.store(maximum);
  sum.store(weight);
  factor.store(shrink);
}

// Lanes [lane, lane + Vectors * width) and one block.
template <class V, int Vectors>
void block_of(const TreeAttention& a, const Work& w, const Room& room, int64_t block, Slots slots, const float* key,
              const float* value, int64_t lane) {
  constexpr int64_t stride = Vectors * V::kWidth;
  const int64_t n = slots.to - slots.from;
  score<V, Vectors>(room.query + lane * a.head_dim, key, value, a.head_dim, n, room.scores, stride);
  for (int i = 0; i < Vectors; i++) {
    const int64_t at = i * V::kWidth;
    if (slots.to > w.row->length) hide<V>(a, w, room, block, slots, lane + at, room.scores + at, stride);
    soften<V>(room.scores + at, n, stride, room.maxima(a, room.sums) + lane + at, room.weights(a, room.sums) + lane + at,
              room.shrink + at);
  }
  add(room.scores, stride, least(stride, room.queries - lane), value, a.head_dim, n, room.shrink,
      room.sums + lane * a.head_dim, lane == 0 && a.type == CacheType::kFp32 ? key + n * a.head_dim : nullptr);
}

template <class V>
void segment_of(const TreeAttention& a, const Work& w, const Room& room, int64_t segment) {
  room.clear(a, room.sums);
  const Row& row = *w.row;
  const int64_t end = row.length + (row.chain ? w.first + w.nodes : row.deepest + 1);  // of logical positions
  const int64_t offset = row_offset(a, row.index, w.kv_head);
  const int64_t first = segment * (kSegment / kBlock), last = least(first + kSegment / kBlock, (end + kBlock - 1) / kBlock);
  for (int64_t block = first; block < last; block++) {
    const Slots all = slots_of(w, room, block, room.queries);
    const float* key = get(a, a.key, a.key_scale, offset + all.from, all.to - all.from, room.keys);
    const float* value = get(a, a.value, a.value_scale, offset + all.from, all.to - all.from, room.values);
    for (int64_t lane = 0; lane < room.queries;) {
      const bool two = lane + V::kWidth < room.queries;
      const Slots slots = slots_of(w, room, block, lane + (two ? 2 : 1) * V::kWidth);
      if (slots.to > slots.from) {
        if (two)
          block_of<V, 2>(a, w, room, block, slots, key, value, lane);
        else
          block_of<V, 1>(a, w, room, block, slots, key, value, lane);
      }
      lane += (two ? 2 : 1) * V::kWidth;
    }
  }
}

// Adds a segment's sums to those of the segments before it.
void append(const TreeAttention& a, const Room& room, const float* part) {
  float *maximum = room.maxima(a, room.totals), *weight = room.weights(a, room.totals);
  const float *other_maximum = room.maxima(a, part), *other_weight = room.weights(a, part);
  alignas(64) float shrink[kLanes], other_shrink[kLanes];
  for (int64_t lane = 0; lane < room.queries; lane += Wide::kWidth) {
    const Wide top = Wide::max(Wide::load(maximum + lane), Wide::load(other_maximum + lane));
    const Wide factor = exponential(Wide::load(maximum + lane) - top);
    const Wide other = exponential(Wide::load(other_maximum + lane) - top);
    top.store(maximum + lane);
    Wide::fma(other, Wide::load(other_weight + lane), factor * Wide::load(weight + lane)).store(weight + lane);
    factor.store(shrink);
    other.store(other_shrink);
    for (int64_t q = lane; q < least(lane + Wide::kWidth, room.queries); q++)
      for (int64_t d = 0; d < a.head_dim; d += Narrow::kWidth) {
        float* sum = room.totals + q * a.head_dim + d;
        const Narrow before = Narrow::load(sum) * Narrow::set(shrink[q - lane]);
        Narrow::fma(Narrow::set(other_shrink[q - lane]), Narrow::load(part + q * a.head_dim + d), before).store(sum);
      }
  }
}

void finish(const TreeAttention& a, const Work& w, const Room& room) {
  const float* weight = room.weights(a, room.totals);
  for (int64_t q = 0; q < room.queries; q++) {
    const int64_t token = w.row->first + w.first + q / room.group, head = w.kv_head * room.group + q % room.group;
    const float inverse = 1.0f / weight[q];
    float* out = a.out + (token * a.heads + head) * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; d++) out[d] = room.totals[q * a.head_dim + d] * inverse;
  }
}

template <class V>
void attend_with(const TreeAttention& a, const Work& w, Room& room) {
  pack_queries<V>(a, w, room);
  for (int64_t i = 0; i < w.segments; i++) {
    const int64_t segment = w.first_segment + i;
    segment_of<V>(a, w, room, segment);
    if (w.partial) {
      std::memcpy(w.partial + segment * partial_size(a, w), room.sums, partial_size(a, w) * sizeof(float));
    } else if (i == 0) {  // added to nothing it would be the same
      float* first = room.sums;
      room.sums = room.totals;
      room.totals = first;
    } else {
      append(a, room, room.sums);
    }
  }
}

void attend(const TreeAttention& a, const Work& w, float* scratch) {
  Room room(a, w, scratch);
  if (w.writes) write(a, *w.row, w.kv_head, room.turned);
  if (!w.row->chain) spread_ancestors(a, w, room);
  if (room.queries > Narrow::kWidth)
    attend_with<Wide>(a, w, room);
  else
    attend_with<Narrow>(a, w, room);
  if (!w.partial) finish(a, w, room);
}

void merge(const TreeAttention& a, const Work& w, float* scratch) {
  const Room room(a, w, scratch);
  room.clear(a, room.totals);
  for (int64_t segment = 0; segment < w.segments; segment++) append(a, room, w.partial + segment * partial_size(a, w));
  finish(a, w, room);
}

}  // namespace
}  // namespace gorgon
