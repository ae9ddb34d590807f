// The plainest path: any processor.
#include "fused.h"
#include "int8_path.h"
#include "quantize_token.h"

namespace gorgon {
namespace {

void multiply(const Int8Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) {
      const Activations& a = groups[g];
      for (std::size_t t = 0; t < a.tokens; t++) {
        const std::uint8_t* row = w.values.as<std::uint8_t>() + tile * w.tile_bytes();
        std::int32_t sum[kTile];
        for (std::int32_t& s : sum) s = a.offsets[t];
        for (std::size_t r = 0; r < w.width / 4; r++, row += 4 * kTile)
          for (std::size_t i = 0; i < 4 * kTile; i++) sum[i / 4] += row[i] * a.values[(r * a.tokens + t) * 4 + i % 4];
        for (std::size_t n = 0; n < kTile && tile * kTile + n < w.shape.places(); n++) {
          const float weight = w.scales.as<float>()[tile * kTile + n];
          *a.place(t, tile * kTile + n) = static_cast<float>(sum[n]) * weight * a.scales[t];
        }
      }
    }
}

}  // namespace

const Int8Path kInt8Portable = {8, quantize_group, multiply, normalize_token, gate_tile};

}  // namespace gorgon
