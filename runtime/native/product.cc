#include "product.h"

#include <vector>

namespace gorgon {

std::byte* scratch(std::size_t bytes) {
  thread_local std::vector<std::byte> memory;
  if (memory.size() < bytes + 64) memory.resize(bytes + 64);
  std::byte* start = memory.data();
  return start + (64 - reinterpret_cast<std::uintptr_t>(start) % 64) % 64;
}

}  // namespace gorgon
