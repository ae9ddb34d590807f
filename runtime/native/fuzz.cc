// Products and drafts of random shapes, each array in memory of exactly its size: for sanitizers and valgrind to watch.
//
//   gorgon_fuzz PATH CASES SEED [LARGEST]   every case has to give the bits of the portable path
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <vector>

#include "entry.h"
#include "matmul_int4.h"
#include "matmul_int8.h"
#include "top_drafts.h"

namespace gorgon {
namespace {

class Cases {
 public:
  Cases(unsigned seed, std::size_t largest) : random_(seed), largest_(largest) {}

  // 0, or 1 where a path's result is not the portable one.
  int run(Path path) {
    const std::size_t tokens = pick(0, pick(0, 9) ? 20 : 512), inputs = pick(1, largest_), outputs = pick(1, largest_ / 2);
    const std::size_t block = std::size_t{32} << pick(0, 3), blocks = (inputs + block - 1) / block;
    const std::vector<float> x = floats(tokens * inputs, -3, 3);
    const std::size_t layers = pick(1, 3);
    const Threads threads(static_cast<int>(pick(1, 3)));
    const Parallel pool = threads.pool();
    std::vector<Int4Weights> int4;
    for (std::size_t layer = 0; layer < layers; layer++) {
      const std::vector<std::uint8_t> packed = bytes(outputs * blocks * block / 2);
      std::vector<float> scale = floats(outputs * blocks, -0.01f, 0.01f);
      if (pick(0, 1)) for (float& s : scale) s = std::ldexp(std::round(s * 4096), -12);  // a float16
      int4.push_back(pack_int4(packed.data(), scale.data(), inputs, outputs, block, false, pool));
    }
    const std::vector<float> parts = floats(tokens * layers * inputs, -3, 3);
    const int first = same(path, tokens * layers * outputs, [&](Path on, float* y) {
      multiply_int4(int4.data(), layers, on, parts.data(), tokens, y, pool);
    });
    const std::vector<std::uint8_t> levels = bytes(inputs * outputs);
    const std::vector<float> channels = floats(outputs, 0, 0.01f);
    const auto values = reinterpret_cast<const std::int8_t*>(levels.data());
    const Int8Weights int8 = pack_int8(values, channels.data(), inputs, outputs, false, pool);
    const int second = same(path, tokens * outputs, [&](Path on, float* y) {
      multiply_int8(int8, on, x.data(), tokens, y, pool);
    });
    const int third = fused(path, tokens, inputs, outputs, block, pool);
    if (first || second || third)
      std::printf("%s differs: %zu tokens, %zu inputs, %zu outputs, block %zu, %zu layers\n", first ? "int4" : second ? "int8" : "a norm's product",
                  tokens, inputs, outputs, block, layers);
    return first | second | third | drafts(x, tokens, inputs, path, pool);
  }

 private:
  // Products of a norm, gated or not, of 4 and of 8 bits: what they give, and the norm's sums.
  int fused(Path path, std::size_t tokens, std::size_t inputs, std::size_t results, std::size_t block,
            const Parallel& pool) {
    const bool gated = pick(0, 1);
    const std::size_t outputs = gated ? 2 * results : results, blocks = (inputs + block - 1) / block;
    const std::vector<std::uint8_t> packed = bytes(outputs * blocks * block / 2), levels = bytes(inputs * outputs);
    const std::vector<float> scale = floats(outputs * blocks, -0.01f, 0.01f), channels = floats(outputs, 0, 0.01f);
    const Int4Weights int4 = pack_int4(packed.data(), scale.data(), inputs, outputs, block, gated, pool);
    const auto values = reinterpret_cast<const std::int8_t*>(levels.data());
    const Int8Weights int8 = pack_int8(values, channels.data(), inputs, outputs, gated, pool);
    const std::vector<float> x = floats(tokens * inputs, -3, 3), added = floats(tokens * inputs, -3, 3);
    const std::vector<float> weight = floats(inputs, 0, 2);
    const auto norm_of = [&](float* total) { return Norm{added.data(), weight.data(), 1e-5f, total}; };
    const std::size_t of_sums = tokens * inputs, of_y = tokens * results;
    const int first = same(path, of_sums + of_y, [&](Path on, float* y) {
      const Norm norm = norm_of(y + of_y);
      multiply_int4(&int4, 1, on, x.data(), tokens, y, pool, &norm);
    });
    return first | same(path, of_sums + of_y, [&](Path on, float* y) {
      const Norm norm = norm_of(y + of_y);
      multiply_int8(int8, on, x.data(), tokens, y, pool, &norm);
    });
  }

  // The best of each row: in order, and none better left out. Log-probabilities have no bits to compare: each path's
  // exponential is its own.
  int drafts(const std::vector<float>& logits, std::size_t rows, std::size_t vocab, Path path, const Parallel& pool) {
    const std::size_t top_k = pick(1, std::min<std::size_t>(vocab, 20));
    std::vector<float> logprobs(rows * top_k);
    std::vector<std::int64_t> tokens(rows * top_k);
    top_drafts(logits.data(), rows, vocab, top_k, logprobs.data(), tokens.data(), path, pool);
    std::vector<std::int64_t> best(rows);
    best_tokens(logits.data(), rows, vocab, best.data(), path, pool);
    for (std::size_t row = 0; row < rows; row++) {
      std::vector<float> sorted(logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab);
      const std::vector<float> given = sorted;
      std::sort(sorted.rbegin(), sorted.rend());
      if (best[row] != std::max_element(given.begin(), given.end()) - given.begin())
        return std::printf("the best token differs: %zu tokens, row %zu\n", vocab, row), 1;
      for (std::size_t i = 0; i < top_k; i++)
        if (given.at(tokens[row * top_k + i]) != sorted[i] || !(logprobs[row * top_k + i] <= 0))
          return std::printf("drafts differ: %zu of %zu tokens, row %zu, rank %zu\n", top_k, vocab, row, i), 1;
    }
    return 0;
  }

  template <typename Multiply>
  static int same(Path path, std::size_t size, Multiply multiply) {
    std::vector<float> want(size), found(size);
    multiply(Path::kPortable, want.data());
    multiply(path, found.data());
    return size && std::memcmp(want.data(), found.data(), size * sizeof(float)) ? 1 : 0;
  }

  std::size_t pick(std::size_t low, std::size_t high) {
    return std::uniform_int_distribution<std::size_t>(low, high < low ? low : high)(random_);
  }

  std::vector<float> floats(std::size_t size, float low, float high) {
    std::vector<float> made(size);
    std::uniform_real_distribution<float> values(low, high);
    for (float& value : made) value = values(random_);
    return made;
  }

  std::vector<std::uint8_t> bytes(std::size_t size) {
    std::vector<std::uint8_t> made(size);
    for (std::uint8_t& value : made) value = static_cast<std::uint8_t>(random_());
    return made;
  }

  std::mt19937 random_;
  std::size_t largest_;
};

}  // namespace
}  // namespace gorgon

int main(int count, char** arguments) {
  using namespace gorgon;
  if (count < 4) return std::fprintf(stderr, "usage: %s PATH CASES SEED [LARGEST]\n", arguments[0]), 2;
  try {
    force_path(arguments[1]);
    Cases cases(static_cast<unsigned>(std::atoi(arguments[3])), count > 4 ? std::atoi(arguments[4]) : 400);
    int wrong = 0;
    for (int i = std::atoi(arguments[2]); i > 0; i--) wrong |= cases.run(path());
    return wrong;
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 2;
  }
}
