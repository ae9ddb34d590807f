// What products of all kinds of weights share: tiles of outputs, groups of tokens, and how the work is divided.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace gorgon {

constexpr std::size_t kTile = 32;  // outputs that are computed together
constexpr std::size_t kHalf = 16;  // of them in one register of 512 bits

// A product's outputs may be of two halves, gates and what they are multiplied by: SiLU(gate) * other is what it gives.
// A tile then holds kHalf of each.
struct Shape {
  std::size_t inputs = 0, outputs = 0;
  bool gated = false;
  std::size_t tiles = 0;

  Shape() = default;
  // Throws std::invalid_argument where the outputs have no halves.
  Shape(std::size_t inputs, std::size_t outputs, bool gated)
      : inputs(inputs), outputs(outputs), gated(gated), tiles((results() + per_tile() - 1) / per_tile()) {
    if (gated && outputs % 2) throw std::invalid_argument(std::to_string(outputs) + " outputs: gated ones are two halves");
  }

  std::size_t results() const { return gated ? outputs / 2 : outputs; }
  std::size_t per_tile() const { return gated ? kHalf : kTile; }  // results
  std::size_t places() const { return gated ? tiles * kTile : outputs; }  // that a path computes
  // Which output is at place n of a tile; `outputs` where none is.
  std::size_t output_at(std::size_t tile, std::size_t n) const {
    const std::size_t result = tile * per_tile() + n % per_tile();
    return result < results() ? n / per_tile() * results() + result : outputs;
  }
};

// A group's activations as the kernels read them. `blocks` of weights share a scale; where they have none, it is 1.
struct Activations {
  const std::int8_t* values;    // [inputs / 4][tokens][4], or as the path that made them has it
  const float* scales;          // [blocks][tokens]
  const std::int32_t* offsets;  // [blocks][tokens]: what the sums of products start from
  std::size_t tokens;           // of the group
  float* out;                   // [tokens][outputs], of `stride` floats each
  std::size_t stride;
  std::size_t first = 0;  // the output that `out` begins with

  float* place(std::size_t token, std::size_t output) const { return out + token * stride + (output - first); }
};

// The norm that a product's inputs are of: x + added, of which the sum goes to `total`. All [tokens, inputs].
struct Norm {
  const float* added;
  const float* weight;  // [inputs]
  float epsilon;
  float* total;
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
  void (*normalize)(const float* x, const float* added, const float* weight, float epsilon, std::size_t count,
                    float* total, float* out);  // a token
  void (*gate)(const float* tile, std::size_t tokens, std::size_t there, float* out, std::size_t stride);
};

// Room for a call's quantized activations, aligned to 64 bytes; grows to the largest call of its thread, and stays.
std::byte* scratch(std::size_t bytes);

// The gated outputs of the tiles first .. last - 1, which leave the processor's nearest cache only as results.
template <typename Weights>
void multiply_gated(const Weights& weights, const ProductPath<Weights>& use, std::size_t first, std::size_t last,
                    const Activations* groups, std::size_t count) {
  constexpr std::size_t kPair = 2, kMostTokens = 16;  // groups that a path takes at once, and tokens of each
  alignas(64) float tiles[kPair][kMostTokens * kTile];
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g += kPair) {
      const std::size_t pair = std::min(kPair, count - g), result = tile * kHalf;
      Activations own[kPair];
      for (std::size_t i = 0; i < pair; i++) {
        own[i] = groups[g + i];
        own[i].out = tiles[i], own[i].stride = kTile, own[i].first = tile * kTile;
      }
      use.multiply(weights, tile, tile + 1, own, pair);
      for (std::size_t i = 0; i < pair; i++)
        use.gate(tiles[i], own[i].tokens, std::min(kHalf, weights.shape.results() - result),
                 groups[g + i].place(0, result), groups[g + i].stride);
    }
}

// x [tokens, layers, inputs] -> y [tokens, layers, results]: each of some layers of one shape multiplies its own part.
// Weights have shape, width (inputs with what fills them up), blocks and tile_bytes(). With a norm there is one layer.
template <typename Weights>
void run_product(const Weights* layers, std::size_t layer_count, const ProductPath<Weights>& use, const float* x,
                 std::size_t tokens, float* y, const Parallel& pool,
                 const Norm* norm = nullptr) {
  const Weights& w = layers[0];
  if (tokens == 0 || layer_count == 0 || w.shape.results() == 0) return;
  const std::size_t inputs = w.shape.inputs, results = w.shape.results();
  const std::size_t count = (tokens + use.group - 1) / use.group, all = count * layer_count;  // groups, of each layer
  std::byte* room = scratch(all * sizeof(Activations) + layer_count * tokens * (w.width + w.blocks * 8) +
                            (norm ? tokens * inputs * sizeof(float) : 0));
  const auto groups = reinterpret_cast<Activations*>(room);
  const auto scales = reinterpret_cast<float*>(groups + all);
  const auto offsets = reinterpret_cast<std::int32_t*>(scales + layer_count * tokens * w.blocks);
  const auto normed = reinterpret_cast<float*>(offsets + layer_count * tokens * w.blocks);
  const auto values = reinterpret_cast<std::int8_t*>(normed + (norm ? tokens * inputs : 0));
  const auto prepare = [&](std::size_t i) {
    const std::size_t layer = i / count, first = i % count * use.group, size = std::min(use.group, tokens - first);
    const std::size_t place = layer * tokens + first, part = first * layer_count + layer;
    std::int8_t* at = values + place * w.width;
    float* scale = scales + place * w.blocks;
    std::int32_t* offset = offsets + place * w.blocks;
    const float* from = x + part * inputs;
    if (norm != nullptr) {
      for (std::size_t t = first * inputs; t < (first + size) * inputs; t += inputs)
        use.normalize(x + t, norm->added + t, norm->weight, norm->epsilon, inputs, norm->total + t, normed + t);
      from = normed + first * inputs;
    }
    use.quantize(layers[layer], from, layer_count * inputs, size, at, scale, offset);
    groups[i] = {at, scale, offset, size, y + part * results, layer_count * results};
  };
  if (count == 1)
    for (std::size_t layer = 0; layer < layer_count; layer++) prepare(layer);  // sooner done than divided
  else
    parallel(pool, all, prepare);

  constexpr std::size_t kChunkBytes = 48 << 10;  // small enough that nobody waits long for the last one
  const std::size_t step = std::max<std::size_t>(1, kChunkBytes / w.tile_bytes());
  const std::size_t chunks = (w.shape.tiles + step - 1) / step;
  const auto run = [&](std::size_t i) {
    const std::size_t layer = i / chunks, chunk = i % chunks;
    const std::size_t from = chunk * step, to = std::min(w.shape.tiles, from + step);
    if (w.shape.gated)
      multiply_gated(layers[layer], use, from, to, groups + layer * count, count);
    else
      use.multiply(layers[layer], from, to, groups + layer * count, count);
  };
  if (chunks * layer_count == 1)
    run(0);
  else
    parallel(pool, chunks * layer_count, run);
}

}  // namespace gorgon
