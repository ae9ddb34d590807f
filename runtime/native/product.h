// What products of all kinds of weights share: tiles of outputs, groups of tokens, and how the work is divided.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace gorgon {

constexpr std::size_t kTile = 32;  // outputs that are computed together
constexpr std::size_t kHalf = 16;  // of them in one register of 512 bits

// A group's activations as the kernels read them. `blocks` of weights share a scale; where they have none, it is 1.
struct Activations {
  const std::int8_t* values;    // [inputs / 4][tokens][4], or as the path that made them has it
  const float* scales;          // [blocks][tokens]
  const std::int32_t* offsets;  // [blocks][tokens]: what the sums of products start from
  std::size_t tokens;           // of the group
  float* out;                   // [tokens][outputs]
};

// What a path brings for one kind of weights, in a file that is compiled for its instructions.
template <typename Weights>
struct ProductPath {
  std::size_t group;  // tokens that share a pass over unpacked weights, at most
  // A group's inputs x [tokens, inputs] into its arrays; see Activations.
  void (*quantize)(const Weights& weights, const float* x, std::size_t tokens, std::int8_t* values, float* scales,
                   std::int32_t* offsets);
  // Outputs of the tiles first .. last - 1, for every group.
  void (*multiply)(const Weights& weights, std::size_t first, std::size_t last, const Activations* groups,
                   std::size_t count);
};

// Room for a call's quantized activations, aligned to 64 bytes; grows to the largest call of its thread, and stays.
std::byte* scratch(std::size_t bytes);

// x [tokens, inputs] -> y [tokens, outputs]. Weights have inputs, outputs, width (inputs with what fills them up), blocks,
// tiles and tile_bytes().
template <typename Weights>
void run_product(const Weights& w, const ProductPath<Weights>& use, const float* x, std::size_t tokens, float* y,
                 const Parallel& pool) {
  if (tokens == 0 || w.outputs == 0) return;
  const std::size_t count = (tokens + use.group - 1) / use.group;
  std::byte* room = scratch(count * sizeof(Activations) + tokens * (w.width + w.blocks * 8));
  const auto groups = reinterpret_cast<Activations*>(room);
  const auto scales = reinterpret_cast<float*>(groups + count);
  const auto offsets = reinterpret_cast<std::int32_t*>(scales + tokens * w.blocks);
  const auto values = reinterpret_cast<std::int8_t*>(offsets + tokens * w.blocks);
  const auto prepare = [&](std::size_t g) {
    const std::size_t first = g * use.group, size = std::min(use.group, tokens - first);
    std::int8_t* at = values + first * w.width;
    float* scale = scales + first * w.blocks;
    std::int32_t* offset = offsets + first * w.blocks;
    use.quantize(w, x + first * w.inputs, size, at, scale, offset);
    groups[g] = {at, scale, offset, size, y + first * w.outputs};
  };
  if (count == 1)
    prepare(0);
  else
    parallel(pool, count, prepare);

  constexpr std::size_t kChunkBytes = 48 << 10;  // small enough that nobody waits long for the last one
  const std::size_t step = std::max<std::size_t>(1, kChunkBytes / w.tile_bytes());
  const std::size_t chunks = (w.tiles + step - 1) / step;
  const auto run = [&](std::size_t chunk) {
    use.multiply(w, chunk * step, std::min(w.tiles, (chunk + 1) * step), groups, count);
  };
  if (chunks == 1)
    run(0);
  else
    parallel(pool, chunks, run);
}

}  // namespace gorgon
