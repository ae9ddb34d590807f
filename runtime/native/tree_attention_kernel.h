// Tree attention over the vectors of one instruction set. Each of its translation units defines Wide and Narrow
// (vectors of floats, Narrow at most 8 long) and the conversions from_half and to_half in namespace
// gorgon::(anonymous), and then includes this file: all is local, so that no code for one processor is taken for
// another. No templates of the standard library are used here for the same reason.
//
// Queries lie across a vector's lanes while scores are made (a key's element is broadcast), head elements while values
// are added (a weight is broadcast). So each score, each weight and each sum is made by the same operations in the same
// order whatever the number of queries and whichever vector is used.
#include <cmath>
#include <cstring>

#include "tree_attention_cache.h"
#include "tree_attention_tiles.h"
#include "tree_attention_work.h"

namespace gorgon {
namespace {

constexpr float kLowest = -3.402823466e38f;  // before any key: finite, so that no difference is NaN
constexpr float kHidden = -HUGE_VALF;        // score of a key that must not be seen: weight exactly 0

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
void hide(const TreeAttention& a, const Work& w, const Room& room, int64_t block, Slots slots, int64_t lane,
          float* scores, int64_t stride) {
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
    soften<V>(room.scores + at, n, stride, room.maxima(a, room.sums) + lane + at,
              room.weights(a, room.sums) + lane + at, room.shrink + at);
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
  constexpr int64_t blocks = kSegment / kBlock;
  const int64_t first = segment * blocks, last = least(first + blocks, (end + kBlock - 1) / kBlock);
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
