#include "entry.h"

#include <atomic>
#include <cstdint>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "matmul_int4.h"
#include "matmul_int8.h"
#include "tree_attention.h"

namespace gorgon {
namespace {

thread_local std::string last_error;

// 0, or -1 with a message for gorgon_error.
template <typename Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

}  // namespace

Parallel alone() {
  const auto run = [](const Parallel&, void (*body)(void*, std::size_t), std::size_t total, void* data) {
    for (std::size_t i = 0; i < total; i++) body(data, i);
  };
  return {run, nullptr, 1};
}

Parallel Threads::pool() const {
  const auto run = [](const Parallel& self, void (*body)(void*, std::size_t), std::size_t total, void* data) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < total; i = next++) body(data, i);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < self.threads; i++) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  };
  return {run, nullptr, threads_};
}

}  // namespace gorgon

using namespace gorgon;

// The message of this thread's last call that returned -1.
GORGON_EXPORT const char* gorgon_error() { return last_error.c_str(); }

// Whether this processor has a path: 1 or 0; -1 where there is none of that name.
GORGON_EXPORT int gorgon_has(const char* name) {
  for (Path path : kPaths)
    if (std::string(name) == name_of(path)) return has(path);
  return -1;
}

GORGON_EXPORT const char* gorgon_path() { return name_of(path()); }

GORGON_EXPORT int gorgon_force_path(const char* name) {
  return guarded([&] { force_path(name); });
}

// x [tokens, inputs] times weights in MatMulNBits' layout -> y [tokens, outputs], on the path in force.
GORGON_EXPORT int gorgon_matmul_int4(const float* x, std::size_t tokens, const std::uint8_t* packed, const float* scale,
                                     std::size_t inputs, std::size_t outputs, std::size_t block, float* y,
                                     int threads) {
  return guarded([&] {
    const Threads own(threads);
    const Parallel pool = own.pool();
    const Int4Weights weights = pack_int4(packed, scale, inputs, outputs, block, false, pool);
    multiply_int4(&weights, 1, path(), x, tokens, y, pool);
  });
}

// x [tokens, inputs] times int8 weights [inputs, outputs] with a scale per output -> y [tokens, outputs].
GORGON_EXPORT int gorgon_matmul_int8(const float* x, std::size_t tokens, const std::int8_t* weights, const float* scale,
                                     std::size_t inputs, std::size_t outputs, float* y, int threads) {
  return guarded([&] {
    const Threads own(threads);
    const Parallel pool = own.pool();
    multiply_int8(pack_int8(weights, scale, inputs, outputs, false, pool), path(), x, tokens, y, pool);
  });
}

GORGON_EXPORT int gorgon_tree_attention(const TreeAttention* arguments, int threads) {
  return guarded([&] {
    check_arguments(*arguments);
    tree_attention(*arguments, path(), Threads(threads).pool());
  });
}

// y = e^x of n numbers <= 0, as attention computes it; n is a multiple of 16
GORGON_EXPORT void gorgon_exponential(const float* x, float* y, std::int64_t n) { exponential(x, y, n, path()); }
