// Takes the place of ThreadSanitizer's runtime: kernels that are compiled with -fsanitize=thread, and linked without,
// call these at every access to memory. This file itself must be compiled without.
#include "state.h"

using cuda_emulator::device;

namespace {
inline void reads(const void* address, size_t bytes) { device().streams.access(address, bytes, false); }
inline void writes(const void* address, size_t bytes) { device().streams.access(address, bytes, true); }
inline void observes(const volatile void* address, size_t bytes) {
  device().streams.access(const_cast<const void*>(address), bytes, false, true);
}
inline void updates(const volatile void* address, size_t bytes) {
  device().streams.access(const_cast<const void*>(address), bytes, true, true);
}
}  // namespace

// NOLINTBEGIN: the names are the compiler's.
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* address, unsigned long bytes) { reads(address, bytes); }
void __tsan_write_range(void* address, unsigned long bytes) { writes(address, bytes); }

#define ACCESS(bytes)                                                         \
  void __tsan_read##bytes(void* address) { reads(address, bytes); }           \
  void __tsan_write##bytes(void* address) { writes(address, bytes); }         \
  void __tsan_unaligned_read##bytes(void* address) { reads(address, bytes); } \
  void __tsan_unaligned_write##bytes(void* address) { writes(address, bytes); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

#define UPDATE(bits, operation)                                                                                   \
  uint##bits##_t __tsan_atomic##bits##_##operation(volatile uint##bits##_t* address, uint##bits##_t value, int) { \
    updates(address, bits / 8);                                                                                   \
    return __atomic_##operation(address, value, __ATOMIC_SEQ_CST);                                                \
  }
#define COMPARE(bits, kind, weak)                                                                               \
  int __tsan_atomic##bits##_compare_exchange_##kind(volatile uint##bits##_t* address, uint##bits##_t* expected, \
                                                    uint##bits##_t value, int, int) {                           \
    updates(address, bits / 8);                                                                                 \
    return __atomic_compare_exchange_n(address, expected, value, weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);     \
  }
#define ATOMICS(bits)                                                                             \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* address, int) {        \
    observes(address, bits / 8);                                                                  \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* address, uint##bits##_t value, int) { \
    updates(address, bits / 8);                                                                   \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                           \
  }                                                                                               \
  UPDATE(bits, fetch_add)                                                                         \
  UPDATE(bits, fetch_sub)                                                                         \
  UPDATE(bits, fetch_or)                                                                          \
  UPDATE(bits, fetch_and)                                                                         \
  COMPARE(bits, strong, false)                                                                    \
  COMPARE(bits, weak, true)
ATOMICS(8)
ATOMICS(32)
ATOMICS(64)
#undef ATOMICS
#undef COMPARE
#undef UPDATE

}  // extern "C"
// NOLINTEND
