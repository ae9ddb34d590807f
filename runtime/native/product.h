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
  float* out;                   // [tokens][outputs], of `stride` floats each
  std::size_t stride;
};

// What a path brings for one kind of weights, in a file that is compiled for its instructions.
template <typename Weights>
struct ProductPath {
  std::size_t group;  // tokens that share a pass over unpacked weights, at most
  // A group's inputs x [tokens, inputs], `stride` floats from one token to the next, into its arrays; see Activations.
  void (*quantize)(const Weights& weights, const float* x, std::size_t stride, std::size_t tokens, std::int8_t* values,
                   float* scales, std::int32_t* offsets);
  // Outputs of the tiles first .. last - 1, for every group.
  void (*multiply)(const Weights& weights, std::size_t first, std::size_t last, const Activations* groups,
                   std::size_t count);
};

// Room for a call's quantized activations, aligned to 64 bytes; grows to the largest call of its thread, and stays.
std::byte* scratch(std::size_t bytes);

// x [tokens, layers, inputs] -> y [tokens, layers, outputs]: each of some layers of one shape multiplies its own part.
// Weights have inputs, outputs, width (inputs with what fills them up), blocks, tiles and tile_bytes().
template <typename Weights>
void run_product(const Weights* layers, std::size_t layer_count, const ProductPath<Weights>& use, const float* x,
                 std::size_t tokens, float* y, const Parallel& pool) {
  const Weights& w = layers[0];
  if (tokens == 0 || layer_count == 0 || w.outputs == 0) return;
  const std::size_t count = (tokens + use.group - 1) / use.group, all = count * layer_count;  // groups, of each layer
  std::byte* room = scratch(all * sizeof(Activations) + layer_count * tokens * (w.width + w.blocks * 8));
  const auto groups = reinterpret_cast<Activations*>(room);
  const auto scales = reinterpret_cast<float*>(groups + all);
  const auto offsets = reinterpret_cast<std::int32_t*>(scales + layer_count * tokens * w.blocks);
  const auto values = reinterpret_cast<std::int8_t*>(offsets + layer_count * tokens * w.blocks);
  const auto prepare = [&](std::size_t i) {
    const std::size_t layer = i / count, first = i % count * use.group, size = std::min(use.group, tokens - first);
    const std::size_t place = layer * tokens + first, part = first * layer_count + layer;
    std::int8_t* at = values + place * w.width;
    float* scale = scales + place * w.blocks;
    std::int32_t* offset = offsets + place * w.blocks;
    use.quantize(layers[layer], x + part * w.inputs, layer_count * w.inputs, size, at, scale, offset);
    groups[i] = {at, scale, offset, size, y + part * w.outputs, layer_count * w.outputs};
  };
  if (count == 1)
    for (std::size_t layer = 0; layer < layer_count; layer++) prepare(layer);  // sooner done than divided
  else
    parallel(pool, all, prepare);

  constexpr std::size_t kChunkBytes = 48 << 10;  // small enough that nobody waits long for the last one
  const std::size_t step = std::max<std::size_t>(1, kChunkBytes / w.tile_bytes());
  const std::size_t chunks = (w.tiles + step - 1) / step;
  const auto run = [&](std::size_t i) {
    const std::size_t layer = i / chunks, chunk = i % chunks;
    use.multiply(layers[layer], chunk * step, std::min(w.tiles, (chunk + 1) * step), groups + layer * count, count);
  };
  if (chunks * layer_count == 1)
    run(0);
  else
    parallel(pool, chunks * layer_count, run);
}

}  // namespace gorgon
