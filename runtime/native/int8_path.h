// The paths of MatMulInt8.
#pragma once
#include "matmul_int8.h"

namespace gorgon {

using Int8Path = ProductPath<Int8Weights>;

extern const Int8Path kInt8Portable;
#if defined(__x86_64__)
extern const Int8Path kInt8Avx512Vnni;
#endif

}  // namespace gorgon
