#include "peaks.h"

namespace gorgon {

void (*const kPeaksAvx2)(const float* logits, std::size_t parts, std::int32_t* peaks) = find_peaks;

}  // namespace gorgon
