#include "matmul_int8.h"

#include <stdexcept>
#include <string>

#include "int8_path.h"

namespace gorgon {
namespace {

void pack_tile(const Int8Weights& w, const std::int8_t* weights, const float* scale, std::size_t tile) {
  std::uint8_t* out = w.values.as<std::uint8_t>() + tile * w.tile_bytes();
  for (std::size_t row = 0; row < w.width / 4; row++)
    for (std::size_t i = 0; i < 4 * kTile; i++) {
      const std::size_t output = w.shape.output_at(tile, i / 4), input = row * 4 + i % 4;
      const bool there = output < w.shape.outputs && input < w.shape.inputs;
      *out++ = static_cast<std::uint8_t>(128 + (there ? weights[input * w.shape.outputs + output] : 0));
    }
  for (std::size_t n = 0; n < kTile; n++) {
    const std::size_t output = w.shape.output_at(tile, n);
    w.scales.as<float>()[tile * kTile + n] = output < w.shape.outputs ? scale[output] : 0;
  }
}

}  // namespace

Int8Weights pack_int8(const std::int8_t* weights, const float* scale, std::size_t inputs, std::size_t outputs,
                      bool gated, const Parallel& pool) {
  if (inputs > kMostInputs)
    throw std::invalid_argument(std::to_string(inputs) + " inputs: it takes " + std::to_string(kMostInputs) + " at most");
  Int8Weights w;
  w.shape = Shape(inputs, outputs, gated);
  w.width = (inputs + 3) / 4 * 4;
  w.values = Pages(w.shape.tiles * w.tile_bytes());
  w.scales = Pages(w.shape.tiles * kTile * sizeof(float));
  parallel(pool, w.shape.tiles, [&](std::size_t tile) { pack_tile(w, weights, scale, tile); });
  return w;
}

bool has_int8(Path path) { return path == Path::kAvx512Vnni || path == Path::kAmx; }

void multiply_int8(const Int8Weights& weights, Path path, const float* x, std::size_t tokens, float* y,
                   const Parallel& pool, const Norm* norm) {
#if defined(__x86_64__)
  if (has_int8(path)) return run_product(&weights, 1, kInt8Avx512Vnni, x, tokens, y, pool, norm);
#endif
  static_cast<void>(path);
  run_product(&weights, 1, kInt8Portable, x, tokens, y, pool, norm);
}

}  // namespace gorgon
