// Tree attention with vectors of eight floats: AVX2, FMA and F16C.
#include "vector_avx2.h"

namespace gorgon {
namespace {

using Wide = Vector8;
using Narrow = Vector8;

}  // namespace
}  // namespace gorgon

#include "tree_attention_kernel.h"

namespace gorgon {
const Kernels kAvx2 = {write, attend, merge, exponential_array};
}
