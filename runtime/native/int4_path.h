// The paths of MatMulInt4.
#pragma once
#include "matmul_int4.h"

namespace gorgon {

using Int4Path = ProductPath<Int4Weights>;

extern const Int4Path kInt4Portable;
#if defined(__x86_64__)
extern const Int4Path kInt4Avx2, kInt4AvxVnni, kInt4Avx512Vnni, kInt4Amx;
#endif

}  // namespace gorgon
