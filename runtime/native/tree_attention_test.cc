// Entry points for tests, which bring memory of their own and have no session: threads are started for each call.
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tree_attention_work.h"

namespace {

void run(const gorgon::Parallel& self, void (*body)(void*, std::size_t), std::size_t total, void* data) {
  const std::size_t threads = static_cast<std::size_t>(self.threads);
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < threads; t++)
    others.emplace_back([=] {
      for (std::size_t i = t; i < total; i += threads) body(data, i);
    });
  for (std::size_t i = 0; i < total; i += threads) body(data, i);
  for (std::thread& other : others) other.join();
}

}  // namespace

// Writes what is wrong into `error`, "" where nothing is; returns 0 then, else 1.
extern "C" int gorgon_tree_attention(
    const gorgon::TreeAttention* a, int threads, gorgon::Isa isa, char* error, std::size_t size) {
  const std::string wrong = gorgon::has(isa) ? check(*a) : "this processor has not the instructions asked for";
  std::strncpy(error, wrong.c_str(), size - 1);
  error[size - 1] = 0;
  if (!wrong.empty()) return 1;
  tree_attention(*a, {run, nullptr, threads}, isa);
  return 0;
}

extern "C" int gorgon_has_isa(gorgon::Isa isa) { return gorgon::has(isa); }

// y = e^x of n numbers, n a multiple of 16
extern "C" void gorgon_exponential(const float* x, float* y, int64_t n, gorgon::Isa isa) {
  const gorgon::Kernels& k =
#if defined(__x86_64__)
      isa == gorgon::Isa::avx512 ? gorgon::kAvx512 : isa == gorgon::Isa::avx2 ? gorgon::kAvx2 :
#endif
                                                                               gorgon::kPortable;
  k.exponential(x, y, n);
}
