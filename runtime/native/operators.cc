// The operators this library brings to ONNX Runtime, in the domain "gorgon".
#include <string>

#include "custom_op.h"
#include "entry.h"
#include "product_operators.h"
#include "top_drafts.h"
#include "tree_attention_operator.h"

namespace gorgon {
namespace {

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
    for (std::int64_t i = 0; i < layers; i++) layers_.push_back(Int4::weights(info, 1 + 2 * i, false));
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    const std::int64_t all = layers_.size(), inputs = layers_[0].shape.inputs, outputs = layers_[0].shape.outputs;
    if (x.shape.size() != 3 || x.shape[1] > all || x.shape[2] != inputs)
      throw std::invalid_argument("x is " + shape_text(x.shape) + ", it has to be " + shape_text({-1, all, inputs}) +
                                  ", -1 for any size, or have fewer layers");
    const std::int64_t count = x.shape[1];
    float* const y = static_cast<float*>(context.output(0, {x.shape[0], count, outputs}));
    multiply_int4(layers_.data(), count, path_, x.as<float>(), x.shape[0], y, context.pool());
  }

 private:
  Path path_;
  std::vector<Int4Weights> layers_;
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
    float* const logprobs = static_cast<float*>(context.output(0, shape));
    std::int64_t* const tokens = static_cast<std::int64_t*>(context.output(1, shape));
    top_drafts(logits.as<float>(), rows, vocab, top_k_, logprobs, tokens, path_, context.pool());
  }

 private:
  Path path_;
  std::int64_t top_k_;
};

// logits float [..., vocab] -> argmax int64 [...]: of equal logits the first.
class BestToken {
 public:
  static constexpr const char* kName = "BestToken";
  static constexpr ort::Element kInputs[] = {ort::kFloat};
  static constexpr ort::Element kOutputs[] = {ort::kInt64};

  explicit BestToken(const Info&) : path_(path()) {}

  void compute(const Context& context) const {
    const Tensor logits = context.input(0);
    std::vector<std::int64_t> shape = logits.shape;
    if (shape.empty() || shape.back() < 1)
      throw std::invalid_argument("logits are " + shape_text(shape) + ": there is none to choose");
    const std::size_t vocab = shape.back();
    shape.pop_back();
    std::size_t rows = 1;
    for (std::int64_t size : shape) rows *= size;
    std::int64_t* const tokens = static_cast<std::int64_t*>(context.output(0, shape));
    best_tokens(logits.as<float>(), rows, vocab, tokens, path_, context.pool());
  }

 private:
  Path path_;
};

template <typename Kind>
void add_products(std::vector<const ort::CustomOp*>& operators) {
  static const Operator<Product<Kind, kPlain>> plain;
  static const Operator<Product<Kind, kNorm>> normed;
  static const Operator<Product<Kind, kNormGated>> gated;
  operators.insert(operators.end(), {&plain, &normed, &gated});
}

// A domain for these options, which lives as long as the process: sessions refer to it. It holds the operators that are
// faster than stock ones on the path in force; where one is missing, the function of its name runs.
ort::Status* add_domain(const ort::Api* api, ort::SessionOptions* options) {
  static const Operator<MatMulInt4Each> matmul_int4_each;
  static const Operator<TopDrafts> top_drafts;
  static const Operator<BestToken> best_token;
  static const Operator<TreeAttentionOperator> tree_attention;
  static const Operator<TreePlanOperator> tree_plan;
  ort::CustomOpDomain* domain = nullptr;
  if (ort::Status* status = ort::CreateCustomOpDomain::call(api, "gorgon", &domain)) return status;
  std::vector<const ort::CustomOp*> operators = {&matmul_int4_each, &top_drafts, &best_token, &tree_attention,
                                                &tree_plan};
  add_products<Int4>(operators);
  if (has_int8(path())) add_products<Int8>(operators);
  for (const ort::CustomOp* op : operators)
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
