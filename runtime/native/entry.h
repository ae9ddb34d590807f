// Functions that other programs call by name.
#pragma once
#include "parallel.h"

#define GORGON_EXPORT extern "C" __attribute__((visibility("default")))

namespace gorgon {

Parallel alone();  // no pool: one index after the other

// Threads of its own for the length of a call: for callers without a pool, which are tests.
class Threads {
 public:
  explicit Threads(int threads) : threads_(threads < 1 ? 1 : threads) {}
  Parallel pool() const;

 private:
  int threads_;
};

}  // namespace gorgon
