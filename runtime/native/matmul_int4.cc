#include "matmul_int4.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "half.h"
#include "int4_path.h"

namespace gorgon {
namespace {

const Int4Path& functions(Path path) {
#if defined(__x86_64__)
  switch (path) {
    case Path::kPortable: return kInt4Portable;
    case Path::kAvx2: return kInt4Avx2;
    case Path::kAvxVnni: return kInt4AvxVnni;
    case Path::kAvx512Vnni: return kInt4Avx512Vnni;
    case Path::kAmx: return kInt4Amx;
  }
#endif
  static_cast<void>(path);
  return kInt4Portable;
}

// The nibble of one input, of MatMulNBits' layout; 8, a weight of 0, past the last output.
std::uint8_t nibble(const std::uint8_t* packed, std::size_t outputs, std::size_t row_bytes, std::size_t output,
                    std::size_t input) {
  if (output >= outputs) return 8;
  const std::uint8_t byte = packed[output * row_bytes + input / 2];
  return input % 2 ? byte >> 4 : byte & 15;
}

void pack_tile(const Int4Weights& w, const std::uint8_t* packed, const float* scale, std::size_t tile) {
  const std::size_t row_bytes = w.width / 2;
  std::uint8_t* out = w.nibbles.as<std::uint8_t>() + tile * w.tile_bytes();
  for (std::size_t unit = 0; unit < w.width / kUnit; unit++)
    for (std::size_t r = 0; r < 4; r++)
      for (std::size_t i = 0; i < 4 * kTile; i++) {
        const std::size_t output = w.shape.output_at(tile, i / 4), input = unit * kUnit + 4 * r + i % 4;
        const std::uint8_t low = nibble(packed, w.shape.outputs, row_bytes, output, input);
        const std::uint8_t high = nibble(packed, w.shape.outputs, row_bytes, output, input + 16);
        *out++ = static_cast<std::uint8_t>(low | high << 4);
      }
  for (std::size_t b = 0; b < w.blocks; b++)
    for (std::size_t n = 0; n < kTile; n++) {
      const std::size_t output = w.shape.output_at(tile, n), at = (tile * w.blocks + b) * kTile + n;
      const float value = output < w.shape.outputs ? scale[output * w.blocks + b] : 0;
      if (w.half)
        to_half(value, w.scales.as<std::uint16_t>()[at]);
      else
        w.scales.as<float>()[at] = value;
    }
}

}  // namespace

Int4Weights pack_int4(const std::uint8_t* packed, const float* scale, std::size_t inputs, std::size_t outputs,
                      std::size_t block, bool gated, const Parallel& pool) {
  if (block == 0 || block % kUnit != 0 || block > 256)
    throw std::invalid_argument("blocks of " + std::to_string(block) + " inputs: they have to be 32, 64, 128 or 256");
  Int4Weights w;
  w.shape = Shape(inputs, outputs, gated);
  w.block = block, w.blocks = (inputs + block - 1) / block, w.width = w.blocks * block;
  const float* end = scale + outputs * w.blocks;
  std::uint16_t ignored;
  w.half = std::all_of(scale, end, [&ignored](float value) { return to_half(value, ignored); });
  w.nibbles = Pages(w.shape.tiles * w.tile_bytes());
  w.scales = Pages(w.shape.tiles * w.blocks * kTile * (w.half ? sizeof(std::uint16_t) : sizeof(float)));
  parallel(pool, w.shape.tiles, [&](std::size_t tile) { pack_tile(w, packed, scale, tile); });
  return w;
}

void multiply_int4(const Int4Weights* layers, std::size_t count, Path path, const float* x, std::size_t tokens, float* y,
                   const Parallel& pool, const Norm* norm) {
  run_product(layers, count, functions(path), x, tokens, y, pool, norm);
}

}  // namespace gorgon
