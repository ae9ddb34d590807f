// What this processor can do, and which of the kernels' paths is used.
#pragma once
#include <string>

namespace gorgon {

// From the plainest to the fastest; a processor that has one need not have those before it.
enum class Path { kPortable, kAvx2, kAvxVnni, kAvx512Vnni, kAmx };

constexpr Path kPaths[] = {Path::kPortable, Path::kAvx2, Path::kAvxVnni, Path::kAvx512Vnni, Path::kAmx};

const char* name_of(Path path);
bool has(Path path);  // this processor, and the operating system for AMX's tiles

// The path that kernels made from now on take: the fastest there is, unless one was forced.
Path path();
// "auto" or a path's name. Throws std::invalid_argument where there is none such, or the processor does not have it.
void force_path(const std::string& name);

int usable_cores();  // that this process may run on

}  // namespace gorgon
