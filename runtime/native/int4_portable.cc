// The plainest path: any processor.
#include <cmath>

#include "half.h"
#include "fused.h"
#include "int4_path.h"
#include "quantize_block.h"

namespace gorgon {
namespace {

void multiply(const Int4Weights& w, std::size_t first, std::size_t last, const Activations* groups, std::size_t count) {
  const std::size_t units = w.block / kUnit;
  for (std::size_t tile = first; tile < last; tile++)
    for (std::size_t g = 0; g < count; g++) {
      const Activations& a = groups[g];
      for (std::size_t t = 0; t < a.tokens; t++) {
        float total[kTile] = {};
        const std::uint8_t* rows = w.nibbles.as<std::uint8_t>() + tile * w.tile_bytes();
        const std::int8_t* values = a.values + 4 * t;
        for (std::size_t b = 0; b < w.blocks; b++) {
          std::int32_t sum[kTile];
          for (std::int32_t& s : sum) s = a.offsets[b * a.tokens + t];
          for (std::size_t u = 0; u < units; u++, rows += kUnitBytes, values += 8 * 4 * a.tokens)
            for (std::size_t r = 0; r < 4; r++)
              for (std::size_t i = 0; i < 4 * kTile; i++) {
                const std::int32_t low = values[r * 4 * a.tokens + i % 4];
                const std::int32_t high = values[(r + 4) * 4 * a.tokens + i % 4];
                sum[i / 4] += (rows[r * 4 * kTile + i] & 15) * low + (rows[r * 4 * kTile + i] >> 4) * high;
              }
          for (std::size_t n = 0; n < kTile; n++) {
            const std::size_t at = (tile * w.blocks + b) * kTile + n;
            const float scale = w.half ? from_half(w.scales.as<std::uint16_t>()[at]) : w.scales.as<float>()[at];
            total[n] = std::fma(static_cast<float>(sum[n]), scale * a.scales[b * a.tokens + t], total[n]);
          }
        }
        for (std::size_t n = 0; n < kTile && tile * kTile + n < w.shape.places(); n++)
          *a.place(t, tile * kTile + n) = total[n];
      }
    }
}

}  // namespace

const Int4Path kInt4Portable = {8, quantize_group, multiply, normalize_token, gate_tile};

}  // namespace gorgon
