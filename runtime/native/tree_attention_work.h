// How tree attention is cut into pieces of work, and what each instruction set brings to do one.
#pragma once
#include "tree_attention.h"

namespace gorgon {

struct Row {
  int64_t index, first;  // first: of its tokens
  int64_t length, count;
  int64_t deepest;  // largest depth
  bool chain;       // each node sees all before it: its slot is its position
};

// Some nodes of a row and the queries of one key-value head, over some segments of logical positions.
struct Work {
  const Row* row;
  int64_t kv_head;
  int64_t first, nodes;              // of the row's nodes
  int64_t first_segment, segments;   // all of them, unless `partial` is set
  bool writes;                       // puts the row's new keys and values into the cache first
  float* partial;                    // the row's segments' sums [segments of the row][partial_size] go here, else null
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t kLanes = 32;  // queries are padded to a multiple: two vectors of the widest instruction set

inline int64_t queries(const TreeAttention& a, const Work& w) { return w.nodes * (a.heads / a.kv_heads); }

// Of a segment: head_dim sums of values, the maximum and the sum of weights for each query.
inline int64_t partial_size(const TreeAttention& a, const Work& w) {
  return round_up(queries(a, w), kLanes) * (a.head_dim + 2);
}

// Floats that `attend` and `merge` need to work in.
inline int64_t scratch_size(const TreeAttention& a, const Work& w) {
  const int64_t lanes = round_up(queries(a, w), kLanes), slots = kBlock + (w.row->chain ? 0 : w.row->count);
  const int64_t converted = a.type == CacheType::kFp32 ? 0 : 2 * slots * a.head_dim;
  const int64_t seen = w.row->chain ? 0 : w.row->count * lanes / 4;
  return lanes * a.head_dim + 2 * partial_size(a, w) + slots * kLanes + a.head_dim + converted + seen + kLanes;
}

struct Kernels {
  void (*write)(const TreeAttention& a, const Row& row, int64_t kv_head, float* scratch);
  void (*attend)(const TreeAttention& a, const Work& w, float* scratch);
  void (*merge)(const TreeAttention& a, const Work& w, float* scratch);  // the partial sums of all segments
  void (*exponential)(const float* x, float* y, int64_t n);              // n a multiple of 16
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace gorgon
