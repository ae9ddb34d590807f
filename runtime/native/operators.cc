// The operators this library brings to ONNX Runtime, in the domain "gorgon".
#include <string>

#include "custom_op.h"
#include "entry.h"
#include "matmul_int4.h"
#include "tree_attention_operator.h"

namespace gorgon {
namespace {

// x float [..., inputs], MatMulNBits' packed uint8 and scale float initializers -> y float [..., outputs].
// Attributes as MatMulNBits': K inputs, N outputs, block_size.
class MatMulInt4 {
 public:
  static constexpr const char* kName = "MatMulInt4";
  static constexpr ort::Element kInputs[] = {ort::kFloat, ort::kUint8, ort::kFloat};
  static constexpr ort::Element kOutputs[] = {ort::kFloat};
  static constexpr std::size_t kOptionalInputs = 0;

  explicit MatMulInt4(const Info& info) : path_(path()) {
    const std::int64_t inputs = info.integer("K"), outputs = info.integer("N"), block = info.integer("block_size");
    if (inputs < 1 || outputs < 1 || block < 32 || block % 32) throw std::invalid_argument("K, N or block_size is wrong");
    const std::int64_t blocks = (inputs + block - 1) / block;
    const Tensor packed = info.constant(1), scale = info.constant(2);
    expect("packed", packed, outputs * blocks * block / 2);
    expect("scale", scale, outputs * blocks);
    weights_ = pack_int4(packed.as<std::uint8_t>(), scale.as<float>(), inputs, outputs, block, alone());
    forget_mapped(packed.data, outputs * blocks * block / 2);
    forget_mapped(scale.data, outputs * blocks * sizeof(float));
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    std::vector<std::int64_t> shape = x.shape;
    if (shape.empty() || shape.back() != static_cast<std::int64_t>(weights_.inputs))
      throw std::invalid_argument("x is " + shape_text(shape) + ", K is " + std::to_string(weights_.inputs));
    std::size_t tokens = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); i++) tokens *= shape[i];
    shape.back() = weights_.outputs;
    const Tensor y = context.output(0, shape);
    multiply_int4(weights_, path_, x.as<float>(), tokens, static_cast<float*>(y.data), context.pool());
  }

 private:
  static void expect(const char* name, const Tensor& tensor, std::int64_t want) {
    std::int64_t have = 1;
    for (std::int64_t size : tensor.shape) have *= size;
    if (have != want)
      throw std::invalid_argument(std::string(name) + " is " + shape_text(tensor.shape) + ", K, N and block_size make it " +
                                  std::to_string(want) + " elements");
  }

  Path path_;
  Int4Weights weights_;
};

// The domain and its operators live as long as the process: sessions refer to them.
ort::Status* add_domain(const ort::Api* api, ort::SessionOptions* options) {
  static const Operator<MatMulInt4> matmul_int4;
  static const Operator<TreeAttentionOperator> tree_attention;
  static const Operator<TreePlanOperator> tree_plan;
  static const ort::CustomOp* const kOperators[] = {&matmul_int4, &tree_attention, &tree_plan};
  static ort::CustomOpDomain* domain = nullptr;
  if (domain == nullptr) {
    ort::CustomOpDomain* made = nullptr;
    if (ort::Status* status = ort::CreateCustomOpDomain::call(api, "gorgon", &made)) return status;
    for (const ort::CustomOp* op : kOperators)
      if (ort::Status* status = ort::CustomOpDomainAdd::call(api, made, op)) return status;
    domain = made;
  }
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
