// The operators of products: of 4 or 8 bits, of x or of a norm, gated or not.
#pragma once
#include <string>
#include <vector>

#include "custom_op.h"
#include "entry.h"
#include "matmul_int4.h"
#include "matmul_int8.h"

namespace gorgon {

inline void expect(const char* name, const Tensor& tensor, std::int64_t want) {
  std::int64_t have = 1;
  for (std::int64_t size : tensor.shape) have *= size;
  if (have != want)
    throw std::invalid_argument(std::string(name) + " is " + shape_text(tensor.shape) + ", K, N and block_size make it " +
                                std::to_string(want) + " elements");
}

// Weights of 4 bits: MatMulNBits' packed uint8 and scale float; attributes as MatMulNBits' are: K inputs, N outputs,
// block_size.
struct Int4 {
  using Weights = Int4Weights;
  static constexpr ort::Element kLevels = ort::kUint8;
  static constexpr const char* kNames[] = {"MatMulInt4", "NormMatMulInt4", "NormGatedInt4"};

  // From initializers, input `first` and the next.
  static Weights weights(const Info& info, std::size_t first, bool gated) {
    const std::int64_t inputs = info.integer("K"), outputs = info.integer("N"), block = info.integer("block_size");
    if (inputs < 1 || outputs < 1 || block < 1) throw std::invalid_argument("K, N and block_size have to be at least 1");
    const std::int64_t blocks = (inputs + block - 1) / block;
    const Tensor packed = info.constant(first), scale = info.constant(first + 1);
    if (packed.type != ort::kUint8 || scale.type != ort::kFloat)  // ONNX Runtime does not look where any type is taken
      throw std::invalid_argument("packed has to be uint8 and scale float");
    expect("packed", packed, outputs * blocks * block / 2);
    expect("scale", scale, outputs * blocks);
    Weights made = pack_int4(packed.as<std::uint8_t>(), scale.as<float>(), inputs, outputs, block, gated, alone());
    forget_mapped(packed.data, outputs * blocks * block / 2);
    forget_mapped(scale.data, outputs * blocks * sizeof(float));
    return made;
  }

  static void multiply(const Weights& weights, Path path, const float* x, std::size_t tokens, float* y,
                       const Parallel& pool, const Norm* norm) {
    multiply_int4(&weights, 1, path, x, tokens, y, pool, norm);
  }
};

// Weights of 8 bits: int8 [inputs, outputs] and scale float [outputs].
struct Int8 {
  using Weights = Int8Weights;
  static constexpr ort::Element kLevels = ort::kInt8;
  static constexpr const char* kNames[] = {"MatMulInt8", "NormMatMulInt8", "NormGatedInt8"};

  static Weights weights(const Info& info, std::size_t first, bool gated) {
    const Tensor levels = info.constant(first), scale = info.constant(first + 1);
    if (levels.shape.size() != 2 || scale.shape.size() != 1 || scale.shape[0] != levels.shape[1])
      throw std::invalid_argument("weights are " + shape_text(levels.shape) + ", scales " + shape_text(scale.shape) +
                                  ": they have to be [inputs, outputs] and [outputs]");
    const std::size_t inputs = levels.shape[0], outputs = levels.shape[1];
    Weights made = pack_int8(levels.as<std::int8_t>(), scale.as<float>(), inputs, outputs, gated, alone());
    forget_mapped(levels.data, inputs * outputs);
    return made;
  }

  static void multiply(const Weights& weights, Path path, const float* x, std::size_t tokens, float* y,
                       const Parallel& pool, const Norm* norm) {
    multiply_int8(weights, path, x, tokens, y, pool, norm);
  }
};

template <typename Kind, bool kNormed>
struct ProductTypes {
  static constexpr ort::Element kInputs[] = {ort::kFloat, Kind::kLevels, ort::kFloat};
  static constexpr ort::Element kOutputs[] = {ort::kFloat};
};

template <typename Kind>
struct ProductTypes<Kind, true> {
  static constexpr ort::Element kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, Kind::kLevels, ort::kFloat};
  static constexpr ort::Element kOutputs[] = {ort::kFloat, ort::kFloat};
};

// kPlain: x float [..., inputs], weights -> y float [..., outputs].
// kNorm: x, added [..., inputs], norm [inputs], weights -> y, the product of RMS norm(x + added), and x + added;
// attribute epsilon.
// kNormGated: as kNorm, y [..., outputs / 2] = SiLU(first half) * second half.
enum ProductForm { kPlain, kNorm, kNormGated };

template <typename Kind, ProductForm kForm>
class Product : public ProductTypes<Kind, kForm != kPlain> {
 public:
  static constexpr const char* kName = Kind::kNames[kForm];

  explicit Product(const Info& info) : path_(path()), weights_(Kind::weights(info, kForm == kPlain ? 1 : 3, kForm == kNormGated)) {
    if (kForm != kPlain) epsilon_ = info.number("epsilon");
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    std::vector<std::int64_t> shape = x.shape;
    const std::int64_t inputs = weights_.shape.inputs;
    if (shape.empty() || shape.back() != inputs)
      throw std::invalid_argument("x is " + shape_text(shape) + ", its last dimension has to be " +
                                  std::to_string(inputs));
    std::size_t tokens = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); i++) tokens *= shape[i];
    shape.back() = weights_.shape.results();
    float* const y = static_cast<float*>(context.output(0, shape));
    if constexpr (kForm != kPlain) {
      const Tensor added = context.input(1), weight = context.input(2);
      if (added.shape != x.shape || weight.shape != std::vector<std::int64_t>{inputs})
        throw std::invalid_argument("x is " + shape_text(x.shape) + ", added " + shape_text(added.shape) + ", norm " +
                                    shape_text(weight.shape) + ": they have to be of one shape, and norm its last part");
      float* const total = static_cast<float*>(context.output(1, x.shape));
      const Norm norm{added.as<float>(), weight.as<float>(), epsilon_, total};
      Kind::multiply(weights_, path_, x.as<float>(), tokens, y, context.pool(), &norm);
    } else {
      Kind::multiply(weights_, path_, x.as<float>(), tokens, y, context.pool(), nullptr);
    }
  }

 private:
  Path path_;
  typename Kind::Weights weights_;
  float epsilon_ = 0;
};

}  // namespace gorgon
