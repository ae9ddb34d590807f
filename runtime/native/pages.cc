#include "pages.h"

#include <sys/mman.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <new>
#include <utility>

namespace gorgon {
namespace {

constexpr std::size_t kPage = 4096, kHugePage = std::size_t{2} << 20;

// Whether all of [first, end) lies in one mapping of a file.
bool is_mapped_file(std::uintptr_t first, std::uintptr_t end) {
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) return false;
  char line[512];
  bool inside = false;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    std::uintptr_t low, high;
    char mode[5];
    unsigned long long offset, inode;
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %llx %*s %llu", &low, &high, mode, &offset, &inode) != 5)
      continue;
    if (low <= first && end <= high) inside = inode != 0;
  }
  std::fclose(maps);
  return inside;
}

}  // namespace

Pages::Pages(std::size_t bytes) {
  if (bytes == 0) return;
  const std::size_t unit = bytes < kHugePage ? kPage : kHugePage;
  const std::size_t size = (bytes + unit - 1) / unit * unit;
  // one unit more, to begin at a multiple of it: only such ranges can have huge pages
  void* start = mmap(nullptr, size + unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(start);
  const std::uintptr_t first = (address + unit - 1) / unit * unit;
  if (first > address) munmap(start, first - address);
  if (const std::size_t rest = address + unit - first) munmap(reinterpret_cast<void*>(first + size), rest);
  data_ = reinterpret_cast<void*>(first);
  bytes_ = size;
  madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: without it everything works, a little slower
}

Pages::Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Pages::~Pages() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void forget_mapped(const void* data, std::size_t bytes) {
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, end = (begin + bytes) / kPage * kPage;
  if (end > first && is_mapped_file(first, end))
    madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

}  // namespace gorgon
