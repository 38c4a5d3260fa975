#include "shared.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstring>

namespace cuda_emulator {

namespace {

constexpr unsigned char kFill = 0xff;

// The sanitizers would object to memset(): one guards gaps between variables, the other does not know of blocks.
__attribute__((no_sanitize("address", "thread"))) void fill(unsigned char* begin, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  for (volatile unsigned char* at = begin; at < begin + bytes; ++at) *at = kFill;
#else
  std::memset(begin, kFill, bytes);
#endif
}

__attribute__((no_sanitize("address", "thread"))) bool is_filled(const unsigned char* begin, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (begin[i] != kFill) return false;
  return true;
}

}  // namespace

// The sections of this executable or library whose names the compiler gives to variables that nobody initializes.
std::vector<SharedMemory::Variable> SharedMemory::find() {
  std::vector<Variable> variables;
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&fill), &info) == 0) return variables;
  std::FILE* const file = std::fopen(info.dli_fname, "rb");
  if (file == nullptr) return variables;
  const auto read = [&](long at, void* to, size_t bytes) {
    return std::fseek(file, at, SEEK_SET) == 0 && std::fread(to, 1, bytes, file) == bytes;
  };
  ElfW(Ehdr) header;
  if (read(0, &header, sizeof(header))) {
    std::vector<ElfW(Shdr)> sections(header.e_shnum);
    std::vector<char> names;
    if (read(header.e_shoff, sections.data(), sections.size() * sizeof(sections[0]))) {
      names.resize(sections[header.e_shstrndx].sh_size + 1);
      if (!read(sections[header.e_shstrndx].sh_offset, names.data(), names.size() - 1)) sections.clear();
    }
    char* const base = header.e_type == ET_DYN ? static_cast<char*>(info.dli_fbase) : nullptr;
    for (const auto& section : sections)
      if (std::strncmp(names.data() + section.sh_name, ".noinit", 7) == 0)
        variables.push_back({reinterpret_cast<unsigned char*>(base + section.sh_addr), section.sh_size});
  }
  std::fclose(file);
  return variables;
}

void SharedMemory::begin() {
  if (begun_) return;
  begun_ = true;
  variables_ = find();
  for (const Variable& variable : variables_) fill(variable.begin, variable.bytes);
}

// Which variables are a kernel's is seen from what its first blocks leave there; there are too many to fill them all
// every time.
void SharedMemory::after_block(const void* kernel) {
  constexpr int kLooks = 8;
  Kernel& its = kernels_[kernel];
  if (its.looked < kLooks) {
    ++its.looked;
    for (size_t i = 0; i < variables_.size(); ++i)
      if (!is_filled(variables_[i].begin, variables_[i].bytes)) its.variables.insert(i);
  }
  for (const size_t i : its.variables) fill(variables_[i].begin, variables_[i].bytes);
}

}  // namespace cuda_emulator
