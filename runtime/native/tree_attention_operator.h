// TreePlan and TreeAttention as ONNX Runtime's operators; their inputs and outputs are those of export/attention.py.
#pragma once
#include <string>

#include "custom_op.h"
#include "tree_attention.h"

namespace gorgon {

// Gives nothing: what the function of this name computes is for the stock body of TreeAttention.
class TreePlanOperator {
 public:
  static constexpr const char* kName = "TreePlan";
  static constexpr ort::Element kInputs[] = {ort::kInt64, ort::kInt64, ort::kInt64, ort::kBool};
  static constexpr ort::Element kOutputs[] = {ort::kInt64, ort::kInt64, ort::kInt64, ort::kFloat,
                                              ort::kInt64, ort::kInt64, ort::kInt64, ort::kInt64,
                                              ort::kInt64, ort::kInt32, ort::kInt32};

  explicit TreePlanOperator(const Info&) {}

  void compute(const Context& context) const {
    for (std::size_t i = 0; i < std::size(kOutputs); i++) context.output(i, {0});
  }
};

class TreeAttentionOperator {
 public:
  static constexpr const char* kName = "TreeAttention";
  static constexpr ort::Element kInputs[] = {
      ort::kFloat, ort::kFloat, ort::kFloat,              // qkv, key, value
      ort::kInt64, ort::kInt64, ort::kInt64, ort::kBool,  // the step
      ort::kFloat, ort::kFloat,                           // cos, sin
      // and the plan, which is empty
      ort::kInt64, ort::kInt64, ort::kInt64, ort::kFloat, ort::kInt64, ort::kInt64, ort::kInt64, ort::kInt64,
      ort::kInt64, ort::kInt32, ort::kInt32};
  static constexpr ort::Element kOutputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};

  explicit TreeAttentionOperator(const Info& info)
      : heads_(info.integer("heads")), kv_heads_(info.integer("kv_heads")), path_(path()) {}

  void compute(const Context& context) const {
    const Tensor qkv = context.input(0), key = context.input(1), value = context.input(2);
    const Tensor depth = context.input(3), length = context.input(4), count = context.input(5);
    const Tensor ancestors = context.input(6), cosine = context.input(7), sine = context.input(8);
    expect("key", key, {-1, 1, kv_heads_, -1, -1});
    const std::int64_t rows = key.shape[0], capacity = key.shape[3], head_dim = key.shape[4];
    expect("value", value, key.shape);
    expect("qkv", qkv, {-1, (heads_ + 2 * kv_heads_) * head_dim});
    const std::int64_t tokens = qkv.shape[0];
    expect("depth", depth, {tokens});
    expect("length", length, {rows});
    expect("count", count, {rows});
    expect("ancestors", ancestors, {rows, -1, -1});
    expect("ancestors", ancestors, {rows, ancestors.shape[2], ancestors.shape[1]});
    expect("cos", cosine, {-1, head_dim / 2});
    expect("sin", sine, cosine.shape);
    float* const out = static_cast<float*>(context.output(0, {tokens, heads_ * head_dim}));
    if (context.output(1, key.shape) != key.data || context.output(2, key.shape) != value.data)
      throw std::invalid_argument(
          "the cache is written in place: bind one buffer as key and new_key, one as value and new_value");
    const TreeAttention arguments{
        rows, tokens, ancestors.shape[1], heads_, kv_heads_, head_dim, capacity, cosine.shape[0], qkv.as<float>(),
        depth.as<std::int64_t>(), length.as<std::int64_t>(), count.as<std::int64_t>(), ancestors.as<std::uint8_t>(),
        cosine.as<float>(), sine.as<float>(), CacheType::kFp32, key.data, value.data, nullptr, nullptr,
        out};
    check_arguments(arguments);
    tree_attention(arguments, path_, context.pool());
  }

 private:
  // -1 stands for any size
  static void expect(const char* name, const Tensor& tensor, const std::vector<std::int64_t>& want) {
    bool fits = tensor.shape.size() == want.size();
    for (std::size_t i = 0; fits && i < want.size(); i++) fits = want[i] == -1 || want[i] == tensor.shape[i];
    if (!fits)
      throw std::invalid_argument(std::string(name) + " is " + shape_text(tensor.shape) + ", it has to be " +
                                  shape_text(want) + ", -1 for any size");
  }

  std::int64_t heads_, kv_heads_;
  Path path_;
};

}  // namespace gorgon
