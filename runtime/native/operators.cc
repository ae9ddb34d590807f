// The operators this library brings to ONNX Runtime, in the domain "gorgon".
#include <string>

#include "custom_op.h"
#include "entry.h"
#include "matmul_int4.h"
#include "matmul_int8.h"
#include "top_drafts.h"
#include "tree_attention_operator.h"

namespace gorgon {
namespace {

void expect(const char* name, const Tensor& tensor, std::int64_t want) {
  std::int64_t have = 1;
  for (std::int64_t size : tensor.shape) have *= size;
  if (have != want)
    throw std::invalid_argument(std::string(name) + " is " + shape_text(tensor.shape) + ", K, N and block_size make it " +
                                std::to_string(want) + " elements");
}

// y = x W^T over all but x's last dimension, by multiply(x, tokens, y, pool).
template <typename Multiply>
void over_tokens(const Context& context, std::size_t inputs, std::size_t outputs, Multiply multiply) {
  const Tensor x = context.input(0);
  std::vector<std::int64_t> shape = x.shape;
  if (shape.empty() || shape.back() != static_cast<std::int64_t>(inputs))
    throw std::invalid_argument("x is " + shape_text(shape) + ", its last dimension has to be " + std::to_string(inputs));
  std::size_t tokens = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); i++) tokens *= shape[i];
  shape.back() = outputs;
  const Tensor y = context.output(0, shape);
  multiply(x.as<float>(), tokens, static_cast<float*>(y.data), context.pool());
}

// MatMulNBits' packed uint8 and scale float, which are initializers from input `first` on; attributes as MatMulNBits'
// are: K inputs, N outputs, block_size.
Int4Weights int4_weights(const Info& info, std::size_t first) {
  const std::int64_t inputs = info.integer("K"), outputs = info.integer("N"), block = info.integer("block_size");
  if (inputs < 1 || outputs < 1 || block < 1) throw std::invalid_argument("K, N and block_size have to be at least 1");
  const std::int64_t blocks = (inputs + block - 1) / block;
  const Tensor packed = info.constant(first), scale = info.constant(first + 1);
  if (packed.type != ort::kUint8 || scale.type != ort::kFloat)  // ONNX Runtime does not look where any type is taken
    throw std::invalid_argument("packed has to be uint8 and scale float");
  expect("packed", packed, outputs * blocks * block / 2);
  expect("scale", scale, outputs * blocks);
  Int4Weights weights = pack_int4(packed.as<std::uint8_t>(), scale.as<float>(), inputs, outputs, block, alone());
  forget_mapped(packed.data, outputs * blocks * block / 2);
  forget_mapped(scale.data, outputs * blocks * sizeof(float));
  return weights;
}

// x float [..., K], weights -> y float [..., N].
class MatMulInt4 {
 public:
  static constexpr const char* kName = "MatMulInt4";
  static constexpr ort::Element kInputs[] = {ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr ort::Element kOutputs[] = {ort::kFloat};

  explicit MatMulInt4(const Info& info) : path_(path()), weights_(int4_weights(info, 1)) {}

  void compute(const Context& context) const {
    over_tokens(context, weights_.inputs, weights_.outputs,
                [this](const float* x, std::size_t tokens, float* y, const Parallel& pool) {
                  multiply_int4(&weights_, 1, path_, x, tokens, y, pool);
                });
  }

 private:
  Path path_;
  Int4Weights weights_;
};

// x float [tokens, layers, K], the weights of each layer -> y float [tokens, layers, N]: its own part of x each. An x of
// fewer layers is multiplied by the first ones' weights.
class MatMulInt4Each {
 public:
  static constexpr const char* kName = "MatMulInt4Each";
  static constexpr ort::Element kInputs[] = {ort::kFloat, ort::kAny};
  static constexpr ort::Element kOutputs[] = {ort::kFloat};

  explicit MatMulInt4Each(const Info& info) : path_(path()) {
    const std::int64_t layers = info.integer("layers");
    if (layers < 1) throw std::invalid_argument("layers has to be at least 1");
    for (std::int64_t i = 0; i < layers; i++) layers_.push_back(int4_weights(info, 1 + 2 * i));
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    const std::int64_t all = layers_.size(), inputs = layers_[0].inputs, outputs = layers_[0].outputs;
    if (x.shape.size() != 3 || x.shape[1] > all || x.shape[2] != inputs)
      throw std::invalid_argument("x is " + shape_text(x.shape) + ", it has to be " + shape_text({-1, all, inputs}) +
                                  ", -1 for any size, or have fewer layers");
    const std::int64_t count = x.shape[1];
    const Tensor y = context.output(0, {x.shape[0], count, outputs});
    multiply_int4(layers_.data(), count, path_, x.as<float>(), x.shape[0], static_cast<float*>(y.data), context.pool());
  }

 private:
  Path path_;
  std::vector<Int4Weights> layers_;
};

// x float [..., inputs], int8 [inputs, outputs] and scale float [outputs] initializers -> y float [..., outputs].
class MatMulInt8 {
 public:
  static constexpr const char* kName = "MatMulInt8";
  static constexpr ort::Element kInputs[] = {ort::kFloat, ort::kInt8, ort::kFloat};
  static constexpr ort::Element kOutputs[] = {ort::kFloat};

  explicit MatMulInt8(const Info& info) : path_(path()) {
    const Tensor weights = info.constant(1), scale = info.constant(2);
    if (weights.shape.size() != 2 || scale.shape.size() != 1 || scale.shape[0] != weights.shape[1])
      throw std::invalid_argument("weights are " + shape_text(weights.shape) + ", scales " + shape_text(scale.shape) +
                                  ": they have to be [inputs, outputs] and [outputs]");
    const std::size_t inputs = weights.shape[0], outputs = weights.shape[1];
    weights_ = pack_int8(weights.as<std::int8_t>(), scale.as<float>(), inputs, outputs, alone());
    forget_mapped(weights.data, inputs * outputs);
  }

  void compute(const Context& context) const {
    over_tokens(context, weights_.inputs, weights_.outputs,
                [this](const float* x, std::size_t tokens, float* y, const Parallel& pool) {
                  multiply_int8(weights_, path_, x, tokens, y, pool);
                });
  }

 private:
  Path path_;
  Int8Weights weights_;
};

// logits float [..., vocab], top_k int64 [1] an initializer -> logprobs float, tokens int64 [..., top_k], best first.
class TopDrafts {
 public:
  static constexpr const char* kName = "TopDrafts";
  static constexpr ort::Element kInputs[] = {ort::kFloat, ort::kInt64};
  static constexpr ort::Element kOutputs[] = {ort::kFloat, ort::kInt64};

  explicit TopDrafts(const Info& info) : path_(path()) {
    const Tensor top_k = info.constant(1);
    if (top_k.shape != std::vector<std::int64_t>{1})
      throw std::invalid_argument("top_k is " + shape_text(top_k.shape) + ": it has to be [1]");
    top_k_ = *top_k.as<std::int64_t>();
  }

  void compute(const Context& context) const {
    const Tensor logits = context.input(0);
    std::vector<std::int64_t> shape = logits.shape;
    if (shape.empty() || top_k_ < 1 || top_k_ > shape.back())
      throw std::invalid_argument("top_k is " + std::to_string(top_k_) + ", logits are " + shape_text(shape) +
                                  ": it has to be from 1 to their last dimension");
    const std::size_t vocab = shape.back();
    std::size_t rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); i++) rows *= shape[i];
    shape.back() = top_k_;
    const Tensor logprobs = context.output(0, shape), tokens = context.output(1, shape);
    top_drafts(logits.as<float>(), rows, vocab, top_k_, static_cast<float*>(logprobs.data),
               static_cast<std::int64_t*>(tokens.data), path_, context.pool());
  }

 private:
  Path path_;
  std::int64_t top_k_;
};

// A domain for these options, which lives as long as the process: sessions refer to it. It holds the operators that are
// faster than stock ones on the path in force; where one is missing, the function of its name runs.
ort::Status* add_domain(const ort::Api* api, ort::SessionOptions* options) {
  static const Operator<MatMulInt4> matmul_int4;
  static const Operator<MatMulInt4Each> matmul_int4_each;
  static const Operator<MatMulInt8> matmul_int8;
  static const Operator<TopDrafts> top_drafts;
  static const Operator<TreeAttentionOperator> tree_attention;
  static const Operator<TreePlanOperator> tree_plan;
  ort::CustomOpDomain* domain = nullptr;
  if (ort::Status* status = ort::CreateCustomOpDomain::call(api, "gorgon", &domain)) return status;
  const ort::CustomOp* const operators[] = {&matmul_int4, &matmul_int4_each, has_int8(path()) ? &matmul_int8 : nullptr,
                                            &top_drafts,  &tree_attention,    &tree_plan};
  for (const ort::CustomOp* op : operators)
    if (op != nullptr)
      if (ort::Status* status = ort::CustomOpDomainAdd::call(api, domain, op)) return status;
  return ort::AddCustomOpDomain::call(api, options, domain);
}

}  // namespace
}  // namespace gorgon

// What ONNX Runtime calls where the library is registered with a session's options.
GORGON_EXPORT gorgon::ort::Status* RegisterCustomOps(gorgon::ort::SessionOptions* options,
                                                     const gorgon::ort::ApiBase* base) {
  using namespace gorgon;
  if (const ort::Api* api = base->get_api(ort::kApiVersion)) return add_domain(api, options);
  const std::string message = "Gorgon's operators were built for version " + std::to_string(ort::kApiVersion) +
                              " of ONNX Runtime's C API, which this ONNX Runtime, " + base->version() +
                              ", does not have: install 1." + std::to_string(ort::kApiVersion) + " or later";
  return ort::CreateStatus::call(base->get_api(1), ort::kFail, message.c_str());
}
