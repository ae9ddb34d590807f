// Attention of packed draft trees and prompt chunks over a cache: rotary embedding, cache write, tree attention in one.
//
// A query adds its visible keys in logical order: the row's committed tokens by position, then its ancestors by depth.
// Scores are summed over the head's elements one after the other. The softmax runs over blocks of kBlock logical
// positions, and starts anew every kSegment positions; segments are added up in order. So a result's bits depend on the
// query and on its visible keys and values, and on nothing else: not on the slots that they lie in, the row's other
// nodes, the other rows, the chunks of a prompt, the capacity or the threads.
#pragma once
#include <cstdint>

#include "cpu.h"
#include "parallel.h"

namespace gorgon {

constexpr int64_t kBlock = 64;     // logical positions between two looks at the maximum
constexpr int64_t kSegment = 256;  // logical positions that are added up on their own; a multiple of kBlock

enum class CacheType : int64_t { kFp32 = 0, kFp16 = 1, kInt8 = 2 };

// Dimensions: [tokens] all nodes packed row after row, [nodes] the width of `ancestors`, at least the largest count.
// A row's nodes come parents first: a node's ancestors lie before it. A row may have no node.
struct TreeAttention {
  int64_t rows, tokens, nodes, heads, kv_heads, head_dim, capacity;
  int64_t positions;         // rows of cos and sin
  const float* qkv;          // [tokens, (heads + 2 kv_heads) * head_dim], before the rotary embedding
  const int64_t* depth;      // [tokens], of each node below its row's committed tokens
  const int64_t* length;     // [rows], committed tokens
  const int64_t* count;      // [rows], nodes
  const uint8_t* ancestors;  // [rows, nodes, nodes], 1 where a node sees another one or itself
  const float* cosine;       // [positions, head_dim / 2]
  const float* sine;
  CacheType type;
  void* key;           // [rows, kv_heads, capacity, head_dim], the nodes are written after the committed tokens
  void* value;         // the same
  float* key_scale;    // [rows, kv_heads, capacity] of int8, else null
  float* value_scale;  // the same
  float* out;          // [tokens, heads * head_dim]
};

// Throws std::invalid_argument that says what is wrong: nothing that passes reads or writes out of bounds.
void check_arguments(const TreeAttention& a);

// `a` has passed check_arguments, and the processor has `path`. AVX-512 and AMX take vectors of 16, AVX2 of 8.
void tree_attention(const TreeAttention& a, Path path, const Parallel& pool);

void exponential(const float* x, float* y, int64_t n, Path path);  // y = e^x for x <= 0, n a multiple of 16

}  // namespace gorgon
