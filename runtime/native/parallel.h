// Divides work over a pool that somebody else owns: ONNX Runtime's in a session, the caller's own in tests.
#pragma once
#include <cstddef>

namespace gorgon {

struct Parallel {
  void (*run)(const Parallel& self, void (*body)(void* data, std::size_t index), std::size_t total, void* data);
  void* pool;   // what `run` divides over
  int threads;  // at least 1
};

template <typename Body>
void parallel(const Parallel& pool, std::size_t total, Body body) {
  pool.run(pool, [](void* data, std::size_t index) { (*static_cast<Body*>(data))(index); }, total, &body);
}

}  // namespace gorgon
