// The part of ONNX Runtime's C API that custom operators need, as its wheels carry no headers.
//
// OrtApi is a table of functions whose positions never change once they have shipped: "In general, NEVER remove or
// rearrange the members", onnxruntime/core/session/onnxruntime_c_api.cc. Positions, signatures and OrtCustomOp are those
// of include/onnxruntime/core/session/onnxruntime_c_api.h; the last function used, KernelContext_ParallelFor, came with
// version 17. OrtApiBase::GetApi gives no table where the version asked for is newer than the library.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gorgon::ort {

constexpr std::uint32_t kApiVersion = 17;

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct Value;
struct TensorInfo;

constexpr int kFail = 1, kInvalidArgument = 2;  // OrtErrorCode
enum Element : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9 };  // ONNXTensorElementDataType
constexpr int kRequired = 0, kVariadic = 2;  // OrtCustomOpInputOutputCharacteristic
constexpr int kDefaultMemory = 0;            // OrtMemType

struct Api {
  using Any = void (*)();
  Any function[275];  // as far as version 17 goes
};

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*version)();
};

template <std::size_t Position, typename Signature>
struct Function;

template <std::size_t Position, typename Result, typename... Arguments>
struct Function<Position, Result(Arguments...)> {
  static Result call(const Api* api, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(api->function[Position])(arguments...);
  }
};

using CreateStatus = Function<0, Status*(int code, const char* message)>;
using GetErrorMessage = Function<2, const char*(const Status*)>;
using CreateCustomOpDomain = Function<26, Status*(const char* name, CustomOpDomain** out)>;
struct CustomOp;
using CustomOpDomainAdd = Function<27, Status*(CustomOpDomain*, const CustomOp*)>;
using AddCustomOpDomain = Function<28, Status*(SessionOptions*, CustomOpDomain*)>;
using GetTensorMutableData = Function<51, Status*(Value*, void** out)>;
using GetTensorElementType = Function<60, Status*(const TensorInfo*, int* out)>;
using GetDimensionsCount = Function<61, Status*(const TensorInfo*, std::size_t* out)>;
using GetDimensions = Function<62, Status*(const TensorInfo*, std::int64_t* out, std::size_t count)>;
using GetTensorTypeAndShape = Function<65, Status*(const Value*, TensorInfo** out)>;
using KernelInfoGetAttributeFloat = Function<85, Status*(const KernelInfo*, const char* name, float* out)>;
using KernelInfoGetAttributeInt64 = Function<86, Status*(const KernelInfo*, const char* name, std::int64_t* out)>;
using KernelContextGetInput = Function<90, Status*(const KernelContext*, std::size_t index, const Value** out)>;
using KernelContextGetOutput = Function<91, Status*(KernelContext*, std::size_t index, const std::int64_t* shape,
                                                    std::size_t dimensions, Value** out)>;
using ReleaseStatus = Function<93, void(Status*)>;
using ReleaseTensorTypeAndShapeInfo = Function<99, void(TensorInfo*)>;
using KernelInfoGetConstantInputTensor =
    Function<249, Status*(const KernelInfo*, std::size_t index, int* is_constant, const Value** out)>;
using KernelContextParallelFor = Function<274, Status*(const KernelContext*, void (*body)(void*, std::size_t),
                                                       std::size_t total, std::size_t batches, void* data)>;

// OrtCustomOp as of version 17. Of the functions that come in an old and a new form, the new one is given.
struct CustomOp {
  std::uint32_t version = kApiVersion;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*) = nullptr;
  const char* (*name)(const CustomOp*) = nullptr;
  const char* (*provider)(const CustomOp*) = nullptr;
  int (*input_type)(const CustomOp*, std::size_t index) = nullptr;
  std::size_t (*input_count)(const CustomOp*) = nullptr;
  int (*output_type)(const CustomOp*, std::size_t index) = nullptr;
  std::size_t (*output_count)(const CustomOp*) = nullptr;
  void (*compute)(void* kernel, KernelContext*) = nullptr;
  void (*destroy)(void* kernel) = nullptr;
  int (*input_characteristic)(const CustomOp*, std::size_t index) = nullptr;
  int (*output_characteristic)(const CustomOp*, std::size_t index) = nullptr;
  int (*input_memory)(const CustomOp*, std::size_t index) = nullptr;
  int (*variadic_input_minimum)(const CustomOp*) = nullptr;
  int (*variadic_input_homogeneous)(const CustomOp*) = nullptr;
  int (*variadic_output_minimum)(const CustomOp*) = nullptr;
  int (*variadic_output_homogeneous)(const CustomOp*) = nullptr;
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel) = nullptr;
  Status* (*compute_v2)(void* kernel, KernelContext*) = nullptr;
  Status* (*infer_shape)(const CustomOp*, ShapeInferContext*) = nullptr;
  int (*start_version)(const CustomOp*) = nullptr;
  int (*end_version)(const CustomOp*) = nullptr;
};

}  // namespace gorgon::ort
