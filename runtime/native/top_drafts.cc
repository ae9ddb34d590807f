#include "top_drafts.h"

#include <algorithm>
#include <cmath>

#include "peaks.h"
#include "tree_attention.h"

namespace gorgon {

void (*const kPeaksPortable)(const float* logits, std::size_t parts, std::int32_t* peaks) = find_peaks;

namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kParts = 64;  // whose peaks are found in one go

auto peaks_of(Path path) {
#if defined(__x86_64__)
  if (path == Path::kAvx512Vnni || path == Path::kAmx) return kPeaksAvx512;
  if (path != Path::kPortable) return kPeaksAvx2;
#endif
  static_cast<void>(path);
  return kPeaksPortable;
}

// The best of `logits` to `tokens`, by insertion; a part is looked through only where its peak is among them.
void find_best(const float* logits, std::size_t vocab, std::size_t top_k, std::int64_t* tokens, Path path) {
  const auto find = peaks_of(path);
  std::size_t found = 0;
  std::int32_t peaks[kParts], least = 0;  // `least`: the order of the last of top_k that were found
  const auto look = [&](std::size_t start, std::size_t end) {
    for (std::size_t i = start; i < end; i++) {
      const std::int32_t value = order(logits[i]);
      if (found == top_k && value <= least) continue;
      std::size_t at = found < top_k ? found++ : top_k - 1;
      for (; at > 0 && value > order(logits[tokens[at - 1]]); at--) tokens[at] = tokens[at - 1];
      tokens[at] = static_cast<std::int64_t>(i);
      if (found == top_k) least = order(logits[tokens[top_k - 1]]);
    }
  };
  for (std::size_t first = 0, whole = vocab / kPart; first < whole; first += kParts) {
    const std::size_t parts = std::min(kParts, whole - first);
    find(logits + first * kPart, parts, peaks);
    for (std::size_t i = 0; i < parts; i++)
      if (found < top_k || peaks[i] > least) look((first + i) * kPart, (first + i + 1) * kPart);
  }
  look(vocab / kPart * kPart, vocab);
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
    find_best(of_row, vocab, top_k, best, path);
    const float top = of_row[best[0]], sum = log_sum(of_row, vocab, top, path);
    for (std::size_t i = 0; i < top_k; i++) logprobs[row * top_k + i] = of_row[best[i]] - top - sum;
  });
}

void best_tokens(const float* logits, std::size_t rows, std::size_t vocab, std::int64_t* tokens, Path path,
                 const Parallel& pool) {
  const auto best = [&](std::size_t row) { find_best(logits + row * vocab, vocab, 1, tokens + row, path); };
  if (rows == 1)
    best(0);
  else
    parallel(pool, rows, best);
}

}  // namespace gorgon
