#include "cpu.h"

#include <sched.h>

#include <atomic>
#include <iterator>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gorgon {
namespace {

#if defined(GORGON_EMULATE)
constexpr bool kEmulate = true;  // with AVX-512, the paths of instructions that the processor lacks run as well
#elif defined(__x86_64__)
constexpr bool kEmulate = false;
#endif

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, amx = false;
};

bool may_use_tiles() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: Linux 5.16
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

Features look() {
  Features found;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool saves = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C;
  if (!saves) return found;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6, tiles = (low & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.avx2 = ymm && fma && f16c && (b & bit_AVX2);
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;  // of ebx
  const bool avx512 = zmm && (b & kF) && (b & kDq) && (b & kBw) && (b & kVl);
  found.avx512_vnni = found.avx2 && avx512 && (c & (1u << 11));
  const bool amx = (d & (1u << 24)) && (d & (1u << 25));  // AMX-TILE, AMX-INT8
  found.amx = found.avx512_vnni && tiles && amx && may_use_tiles();
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx_vnni = found.avx2 && (a & (1u << 4));
  return found;
}
#endif

std::atomic<int> forced{-1};

}  // namespace

const char* name_of(Path path) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx_vnni", "avx512_vnni", "amx"};
  return kNames[static_cast<int>(path)];
}

bool has(Path path) {
  if (path == Path::kPortable) return true;
#if defined(__x86_64__)
  static const Features features = look();
  switch (path) {
    case Path::kPortable: return true;
    case Path::kAvx2: return features.avx2;
    case Path::kAvxVnni: return features.avx_vnni || (kEmulate && features.avx512_vnni);
    case Path::kAvx512Vnni: return features.avx512_vnni;
    case Path::kAmx: return features.amx || (kEmulate && features.avx512_vnni);
  }
#endif
  return false;
}

Path path() {
  const int choice = forced.load();
  if (choice >= 0) return static_cast<Path>(choice);
  Path best = Path::kPortable;
  for (Path path : kPaths)
    if (has(path)) best = path;
  return best;
}

void force_path(const std::string& name) {
  if (name == "auto") return forced.store(-1);
  std::string names = "auto";
  for (Path path : kPaths) {
    if (has(path)) names += std::string(", ") + name_of(path);
    if (name != name_of(path)) continue;
    if (!has(path)) throw std::invalid_argument("this processor has no " + name);
    return forced.store(static_cast<int>(path));
  }
  throw std::invalid_argument("there is no path " + name + ": here it is one of " + names);
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

}  // namespace gorgon
