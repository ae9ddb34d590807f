#include "int4_ymm.h"

namespace gorgon {

const Int4Path kInt4Avx2 = {8, quantize_group, multiply, normalize_token, gate_tile};

}  // namespace gorgon
