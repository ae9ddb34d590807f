// What a path brings: these two functions, in a file that is compiled for its instructions.
#pragma once
#include "matmul_int4.h"

namespace gorgon {

struct Int4Path {
  // Tokens' values [tokens, inputs] into a group's arrays, blocks first .. first + count; see Activations.
  void (*quantize)(const Int4Weights& weights, const float* x, std::size_t tokens, std::int8_t* values, float* scales,
                   std::int32_t* offsets);
  // Outputs of the tiles first .. last - 1, for every group.
  void (*multiply)(const Int4Weights& weights, std::size_t first, std::size_t last, const Activations* groups,
                   std::size_t count);
};

extern const Int4Path kInt4Portable;
#if defined(__x86_64__)
extern const Int4Path kInt4Avx512Vnni;
#endif

}  // namespace gorgon
