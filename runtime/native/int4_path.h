// What a path brings: these two functions, in a file that is compiled for its instructions.
#pragma once
#include "matmul_int4.h"

namespace gorgon {

struct Int4Path {
  std::size_t group;  // tokens that share a pass over unpacked weights, at most
  // A group's inputs x [tokens, inputs] into its arrays; see Activations.
  void (*quantize)(const Int4Weights& weights, const float* x, std::size_t tokens, std::int8_t* values, float* scales,
                   std::int32_t* offsets);
  // Outputs of the tiles first .. last - 1, for every group.
  void (*multiply)(const Int4Weights& weights, std::size_t first, std::size_t last, const Activations* groups,
                   std::size_t count);
};

extern const Int4Path kInt4Portable;
#if defined(__x86_64__)
extern const Int4Path kInt4Avx2, kInt4AvxVnni, kInt4Avx512Vnni, kInt4Amx;
#endif

}  // namespace gorgon
