// What tree attention refuses before it touches memory.
#include <stdexcept>
#include <string>

#include "tree_attention.h"

namespace gorgon {
namespace {

std::string number(int64_t n) { return std::to_string(n); }
std::string in_row(int64_t row) { return "row " + number(row); }
[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

void check_shape(const TreeAttention& a) {
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads != 0)
    refuse(number(a.heads) + " heads and " + number(a.kv_heads) +
           " key-value heads: the first must be a multiple of the second");
  if (a.head_dim < 8 || a.head_dim % 8 != 0)
    refuse("a head has " + number(a.head_dim) + " elements: it must be a multiple of 8");
  if (a.type != CacheType::kFp32 && a.type != CacheType::kFp16 && a.type != CacheType::kInt8)
    refuse("cache type " + number(static_cast<int64_t>(a.type)) + ": fp32 is 0, fp16 1, int8 2");
  if (a.type == CacheType::kInt8 && (a.key_scale == nullptr || a.value_scale == nullptr))
    refuse("a cache of int8 needs its scales");
}

void check_row(const TreeAttention& a, int64_t row, int64_t first) {
  const int64_t length = a.length[row], count = a.count[row];
  if (length < 0 || count < 0 || count > a.nodes || length > a.capacity || count > a.capacity - length)
    refuse(in_row(row) + " has " + number(length) + " committed tokens and " + number(count) +
           " nodes: ancestors are " + number(a.nodes) + " wide, the cache holds " + number(a.capacity));
  if (count > a.tokens - first)
    refuse(in_row(row) + " ends after token " + number(first + count) + " of " + number(a.tokens));
  for (int64_t i = 0; i < count; i++) {
    const int64_t depth = a.depth[first + i];
    if (depth < 0 || depth >= count || depth >= a.positions - length)
      refuse(in_row(row) + ", node " + number(i) + ": depth " + number(depth) + " after " + number(length) +
             " tokens, with " + number(count) + " nodes and " + number(a.positions) + " positions");
  }
}

// A node sees its ancestors, which lie before it, and itself: one for each depth.
void check_tree(const TreeAttention& a, int64_t row, int64_t first) {
  const int64_t count = a.count[row];
  for (int64_t i = 0; i < count; i++) {
    const uint8_t* seen = a.ancestors + (row * a.nodes + i) * a.nodes;
    int64_t before = 0, after = 0;
    for (int64_t j = 0; j < i; j++) before += seen[j] != 0;
    for (int64_t j = i + 1; j < count; j++) after += seen[j] != 0;
    const int64_t depth = a.depth[first + i];
    if (seen[i] == 0 || after != 0 || before != depth)
      refuse(in_row(row) + ", node " + number(i) + " of depth " + number(depth) + " sees " + number(before) +
             " nodes before it, " + number(after) + " after it and itself " + (seen[i] == 0 ? "not" : "too") +
             ": it must see " + number(depth) + ", 0 and itself");
  }
}

}  // namespace

void check_arguments(const TreeAttention& a) {
  check_shape(a);
  int64_t first = 0;
  for (int64_t row = 0; row < a.rows; row++) {
    check_row(a, row, first);
    check_tree(a, row, first);
    first += a.count[row];
  }
  if (first != a.tokens) refuse("the rows have " + number(first) + " nodes, there are " + number(a.tokens) + " tokens");
}

}  // namespace gorgon
