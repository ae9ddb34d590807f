// What tree attention refuses before it touches memory.
#include <string>

#include "tree_attention.h"

namespace gorgon {
namespace {

std::string in_row(int64_t row) { return "TreeAttention: row " + std::to_string(row); }
std::string number(int64_t n) { return std::to_string(n); }

std::string check_shape(const TreeAttention& a) {
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads != 0)
    return "TreeAttention: " + number(a.heads) + " heads and " + number(a.kv_heads) +
           " key-value heads: the first must be a multiple of the second";
  if (a.head_dim < 8 || a.head_dim % 8 != 0)
    return "TreeAttention: a head has " + number(a.head_dim) + " elements: it must be a multiple of 8";
  if (a.type == CacheType::int8 && (a.key_scale == nullptr || a.value_scale == nullptr))
    return "TreeAttention: a cache of int8 needs its scales";
  if (a.type != CacheType::fp32 && a.type != CacheType::fp16 && a.type != CacheType::int8)
    return "TreeAttention: cache type " + number(static_cast<int64_t>(a.type)) + ": fp32 is 0, fp16 1, int8 2";
  return "";
}

// A node sees its ancestors, which lie before it, and itself: one for each depth.
std::string check_tree(const TreeAttention& a, int64_t row, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const uint8_t* seen = a.ancestors + (row * a.nodes + i) * a.nodes;
    int64_t before = 0, after = 0;
    for (int64_t j = 0; j < i; j++) before += seen[j] != 0;
    for (int64_t j = i + 1; j < count; j++) after += seen[j] != 0;
    const int64_t depth = a.depth[first + i];
    if (seen[i] == 0 || after != 0 || before != depth)
      return in_row(row) + ", node " + number(i) + " of depth " + number(depth) + " sees " + number(before) +
             " nodes before it, " + number(after) + " after it and itself " + (seen[i] == 0 ? "not" : "too") +
             ": it must see " + number(depth) + ", 0 and itself";
  }
  return "";
}

}  // namespace

std::string check(const TreeAttention& a) {
  if (std::string wrong = check_shape(a); !wrong.empty()) return wrong;
  int64_t first = 0;
  for (int64_t row = 0; row < a.rows; row++) {
    const int64_t length = a.length[row], count = a.count[row];
    if (length < 0 || count < 0 || count > a.nodes || length > a.capacity || count > a.capacity - length)
      return in_row(row) + " has " + number(length) + " committed tokens and " + number(count) + " nodes: ancestors are " +
             number(a.nodes) + " wide, the cache holds " + number(a.capacity);
    if (count > a.tokens - first)
      return in_row(row) + " ends after token " + number(first + count) + " of " + number(a.tokens);
    for (int64_t i = 0; i < count; i++)
      if (const int64_t depth = a.depth[first + i]; depth < 0 || depth >= count || length + depth >= a.positions)
        return in_row(row) + ", node " + number(i) + ": depth " + number(depth) + " after " + number(length) +
               " tokens, with " + number(count) + " nodes and " + number(a.positions) + " positions";
    if (std::string wrong = check_tree(a, row, first, count); !wrong.empty()) return wrong;
    first += count;
  }
  if (first != a.tokens)
    return "TreeAttention: the rows have " + number(first) + " nodes, there are " + number(a.tokens) + " tokens";
  return "";
}

}  // namespace gorgon
