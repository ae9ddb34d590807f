#include "int4_ymm.h"

namespace gorgon {

const Int4Path kInt4Avx2 = {8, quantize_group, multiply};

}  // namespace gorgon
