// y = x W^T for weights of 4 bits in blocks and float activations, which are quantized to 8 bits inside.
//
// A block of a token's inputs is rounded to whole numbers from -127 to 127 with one scale; products are added as whole
// numbers within a block, and as floats across blocks, one fused multiply-add each, from the first block to the last.
// So a token's result does not depend on the other tokens, nor on the path that computes it, to the bit.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"
#include "pages.h"
#include "parallel.h"
#include "product.h"

namespace gorgon {

constexpr std::size_t kUnit = 32;  // inputs that are packed together; blocks are whole units
constexpr std::size_t kUnitBytes = kUnit * kTile / 2;

// Weights as the kernels read them. A row of 128 bytes holds 32 outputs by 4 inputs: inputs 4 r .. 4 r + 3 of a unit in
// the low nibbles of its row r, 16 + 4 r .. in the high ones. A nibble q stands for (q - 8) * scale.
struct Int4Weights {
  Shape shape;
  std::size_t block = 0, blocks = 0, width = 0;  // width: blocks * block
  bool half = false;  // scales kept in float16, as all of them are such numbers
  Pages nibbles;      // [tiles][width / 32][4][128]
  Pages scales;       // [tiles][blocks][32]

  std::size_t tile_bytes() const { return width / kUnit * kUnitBytes; }
};

// Packs MatMulNBits' own layout: packed uint8 [outputs, blocks, block / 2], low nibble first, scale [outputs, blocks].
// Throws std::invalid_argument where block is no multiple of 32.
Int4Weights pack_int4(const std::uint8_t* packed, const float* scale, std::size_t inputs, std::size_t outputs,
                      std::size_t block, bool gated, const Parallel& pool);

// x [tokens, count, inputs] -> y [tokens, count, results]: `count` layers of one shape, each on its own part.
void multiply_int4(const Int4Weights* layers, std::size_t count, Path path, const float* x, std::size_t tokens, float* y,
                   const Parallel& pool, const Norm* norm = nullptr);

}  // namespace gorgon
