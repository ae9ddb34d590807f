// y = x W^T for weights of 8 bits with a scale per output, and float activations, rounded inside with a scale per token.
//
// It computes what the stock operators of an int8 layer do (Abs, ReduceMax, Mul, Div, QuantizeLinear,
// MatMulIntegerToFloat, Mul), float by float: the same bits.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"
#include "pages.h"
#include "parallel.h"
#include "product.h"

namespace gorgon {

constexpr std::size_t kMostInputs = 65536;  // whole numbers of 32 bits hold the sum of so many products

// Weights as the kernels read them, 128 added to each: rows of 128 bytes hold 32 outputs by 4 inputs.
struct Int8Weights {
  static constexpr std::size_t blocks = 1;
  Shape shape;
  std::size_t width = 0;  // inputs filled up to a multiple of 4
  Pages values;                                               // uint8 [tiles][width / 4][128]
  Pages scales;                                               // float [tiles][32]

  std::size_t tile_bytes() const { return width * kTile; }
};

// weights int8 [inputs, outputs], scale float [outputs]. Throws std::invalid_argument above kMostInputs.
Int8Weights pack_int8(const std::int8_t* weights, const float* scale, std::size_t inputs, std::size_t outputs,
                      bool gated, const Parallel& pool);

bool has_int8(Path path);  // whether a path has a kernel of its own; without one the stock operators are faster

// x [tokens, inputs] -> y [tokens, results].
void multiply_int8(const Int8Weights& weights, Path path, const float* x, std::size_t tokens, float* y,
                   const Parallel& pool, const Norm* norm = nullptr);

}  // namespace gorgon
