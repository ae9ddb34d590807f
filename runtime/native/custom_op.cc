#include "custom_op.h"

#include "cpu.h"

namespace gorgon {

void check(const ort::Api* api, ort::Status* status) {
  if (status == nullptr) return;
  const std::string message = ort::GetErrorMessage::call(api, status);
  ort::ReleaseStatus::call(api, status);
  throw std::runtime_error(message);
}

Tensor tensor_of(const ort::Api* api, const ort::Value* value) {
  if (value == nullptr) return {};
  Tensor tensor;
  ort::TensorInfo* info = nullptr;
  check(api, ort::GetTensorTypeAndShape::call(api, value, &info));
  std::size_t dimensions = 0;
  int type = 0;
  ort::Status* status = ort::GetDimensionsCount::call(api, info, &dimensions);
  if (status == nullptr) {
    tensor.shape.resize(dimensions);
    status = ort::GetDimensions::call(api, info, tensor.shape.data(), dimensions);
  }
  if (status == nullptr) status = ort::GetTensorElementType::call(api, info, &type);
  ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
  check(api, status);
  tensor.type = static_cast<ort::Element>(type);
  check(api, ort::GetTensorMutableData::call(api, const_cast<ort::Value*>(value), &tensor.data));
  return tensor;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::int64_t Info::integer(const char* attribute) const {
  std::int64_t value = 0;
  check(api, ort::KernelInfoGetAttributeInt64::call(api, info_, attribute, &value));
  return value;
}

float Info::number(const char* attribute) const {
  float value = 0;
  check(api, ort::KernelInfoGetAttributeFloat::call(api, info_, attribute, &value));
  return value;
}

Tensor Info::constant(std::size_t input) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(api, ort::KernelInfoGetConstantInputTensor::call(api, info_, input, &is_constant, &value));
  if (!is_constant) throw std::invalid_argument("input " + std::to_string(input) + " has to be an initializer");
  return tensor_of(api, value);
}

Tensor Context::input(std::size_t index) const {
  const ort::Value* value = nullptr;
  check(api_, ort::KernelContextGetInput::call(api_, context_, index, &value));
  return tensor_of(api_, value);
}

void* Context::output(std::size_t index, const std::vector<std::int64_t>& shape) const {
  ort::Value* value = nullptr;
  check(api_, ort::KernelContextGetOutput::call(api_, context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, ort::GetTensorMutableData::call(api_, value, &data));
  return data;
}

Parallel Context::pool() const {
  const auto run = [](const Parallel& self, void (*body)(void*, std::size_t), std::size_t total, void* data) {
    const Context* context = static_cast<const Context*>(self.pool);
    // 0 batches: each thread takes one index after the other, whoever is free first
    check(context->api_, ort::KernelContextParallelFor::call(context->api_, context->context_, body, total, 0, data));
  };
  static const int threads = usable_cores();  // asking the system takes as long as a small product
  return {run, const_cast<Context*>(this), threads};
}

}  // namespace gorgon
