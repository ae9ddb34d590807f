// Memory for packed weights, and what becomes of the originals.
#pragma once
#include <cstddef>

namespace gorgon {

// Zeroed memory in whole pages, huge ones where the system gives them: weights are read from end to end at every step.
class Pages {
 public:
  Pages() = default;
  explicit Pages(std::size_t bytes);
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  ~Pages();

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Takes pages that were read out of a mapped file off this process's memory; they come back if somebody reads them.
// Nothing happens where `data` is no mapped file.
void forget_mapped(const void* data, std::size_t bytes);

}  // namespace gorgon
