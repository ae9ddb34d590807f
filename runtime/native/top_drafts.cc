#include "top_drafts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tree_attention.h"

namespace gorgon {
namespace {

constexpr std::size_t kPart = 64;  // logits that are looked through only where one of them is among the best
constexpr std::size_t kLanes = 16;

// Whole numbers in the order of the floats: they compare in vectors, and what is no number has a place among them.
std::int32_t order(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}

// The best of `logits` to `tokens`, by insertion.
void find_best(const float* logits, std::size_t vocab, std::size_t top_k, std::int64_t* tokens) {
  std::size_t found = 0;
  for (std::size_t start = 0; start < vocab; start += kPart) {
    const std::size_t end = std::min(vocab, start + kPart);
    if (found == top_k && end == start + kPart) {
      std::int32_t top = order(logits[start]);
      for (std::size_t i = 1; i < kPart; i++) top = std::max(top, order(logits[start + i]));
      if (top <= order(logits[tokens[top_k - 1]])) continue;
    }
    for (std::size_t i = start; i < end; i++) {
      const std::int32_t value = order(logits[i]);
      if (found == top_k && value <= order(logits[tokens[top_k - 1]])) continue;
      std::size_t at = found < top_k ? found++ : top_k - 1;
      for (; at > 0 && value > order(logits[tokens[at - 1]]); at--) tokens[at] = tokens[at - 1];
      tokens[at] = static_cast<std::int64_t>(i);
    }
  }
}

// log(sum(e^(x - top))) of a row; `top` is its largest number.
float log_sum(const float* logits, std::size_t vocab, float top, Path path) {
  constexpr std::size_t kBatch = 512;
  alignas(64) float below[kBatch], powers[kBatch];
  double total = 0;
  for (std::size_t start = 0; start < vocab; start += kBatch) {
    const std::size_t count = std::min(kBatch, vocab - start);
    for (std::size_t i = 0; i < count; i++) below[i] = logits[start + i] - top;
    const std::size_t filled = (count + kLanes - 1) / kLanes * kLanes;
    for (std::size_t i = count; i < filled; i++) below[i] = -INFINITY;
    exponential(below, powers, static_cast<std::int64_t>(filled), path);
    float sums[kLanes] = {};
    for (std::size_t i = 0; i < filled; i += kLanes)
      for (std::size_t lane = 0; lane < kLanes; lane++) sums[lane] += powers[i + lane];
    for (float sum : sums) total += sum;
  }
  return static_cast<float>(std::log(total));
}

}  // namespace

void top_drafts(const float* logits, std::size_t rows, std::size_t vocab, std::size_t top_k, float* logprobs,
                std::int64_t* tokens, Path path, const Parallel& pool) {
  parallel(pool, rows, [&](std::size_t row) {
    const float* of_row = logits + row * vocab;
    std::int64_t* best = tokens + row * top_k;
    find_best(of_row, vocab, top_k, best);
    const float top = of_row[best[0]], sum = log_sum(of_row, vocab, top, path);
    for (std::size_t i = 0; i < top_k; i++) logprobs[row * top_k + i] = of_row[best[i]] - top - sum;
  });
}

}  // namespace gorgon
