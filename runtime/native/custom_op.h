// A custom operator from a class of our own: what its kernel is given, and the table of functions ONNX Runtime calls.
//
// A kernel class has
//   static constexpr const char* kName;
//   static constexpr ort::Element kInputs[], kOutputs[];   types, in order; kAny last: inputs of any number and types
//   explicit Kernel(const Info&);                          once, at load; throws std::exception to refuse the node
//   void compute(const Context&) const;                    possibly several at a time
#pragma once
#include <cstdint>
#include <exception>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_api.h"
#include "parallel.h"

namespace gorgon {

struct Tensor {
  void* data = nullptr;
  ort::Element type = ort::kFloat;
  std::vector<std::int64_t> shape;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

// Throws std::runtime_error with ONNX Runtime's message.
void check(const ort::Api* api, ort::Status* status);
Tensor tensor_of(const ort::Api* api, const ort::Value* value);
std::string shape_text(const std::vector<std::int64_t>& shape);

class Info {
 public:
  Info(const ort::Api* api, const ort::KernelInfo* info) : api(api), info_(info) {}
  std::int64_t integer(const char* attribute) const;
  float number(const char* attribute) const;
  Tensor constant(std::size_t input) const;  // throws where the input is no initializer

  const ort::Api* const api;

 private:
  const ort::KernelInfo* info_;
};

class Context {
 public:
  Context(const ort::Api* api, ort::KernelContext* context) : api_(api), context_(context) {}
  Tensor input(std::size_t index) const;
  void* output(std::size_t index, const std::vector<std::int64_t>& shape) const;  // its memory
  Parallel pool() const;  // ONNX Runtime's own; valid as long as this object

 private:
  const ort::Api* api_;
  ort::KernelContext* context_;
};

template <typename Kernel>
class Operator : public ort::CustomOp {
 public:
  Operator() {
    name = [](const CustomOp*) { return Kernel::kName; };
    provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
    input_type = [](const CustomOp*, std::size_t i) -> int { return Kernel::kInputs[i]; };
    input_count = [](const CustomOp*) { return std::size(Kernel::kInputs); };
    output_type = [](const CustomOp*, std::size_t i) -> int { return Kernel::kOutputs[i]; };
    output_count = [](const CustomOp*) { return std::size(Kernel::kOutputs); };
    input_characteristic = [](const CustomOp*, std::size_t i) {
      return Kernel::kInputs[i] == ort::kAny ? ort::kVariadic : ort::kRequired;
    };
    variadic_input_minimum = [](const CustomOp*) { return 1; };
    variadic_input_homogeneous = [](const CustomOp*) { return 0; };
    output_characteristic = [](const CustomOp*, std::size_t) { return ort::kRequired; };
    input_memory = [](const CustomOp*, std::size_t) { return ort::kDefaultMemory; };
    start_version = [](const CustomOp*) { return 1; };
    end_version = [](const CustomOp*) { return 1; };
    create_kernel_v2 = [](const CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
      return guarded(api, [&] { *kernel = new Held{api, Kernel(Info(api, info))}; });
    };
    compute_v2 = [](void* kernel, ort::KernelContext* context) {
      const Held* held = static_cast<Held*>(kernel);
      return guarded(held->api, [&] { held->kernel.compute(Context(held->api, context)); });
    };
    destroy = [](void* kernel) { delete static_cast<Held*>(kernel); };
  }

 private:
  struct Held {
    const ort::Api* api;
    Kernel kernel;
  };

  template <typename Body>
  static ort::Status* guarded(const ort::Api* api, Body body) {
    try {
      body();
      return nullptr;
    } catch (const std::exception& error) {
      const std::string message = std::string(Kernel::kName) + ": " + error.what();
      return ort::CreateStatus::call(api, ort::kFail, message.c_str());
    }
  }
};

}  // namespace gorgon
