// What the sanitizers must be told: AddressSanitizer that a stack was left for another, ThreadSanitizer which of the
// emulator's own locks are no order between the threads of a kernel. Empty in other builds.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __SANITIZE_THREAD__
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
}
#endif

namespace cuda_emulator {

#ifdef __SANITIZE_ADDRESS__

// A stack as AddressSanitizer knows it.
class StackInfo {
 public:
  void set(const void* bottom, size_t size) { bottom_ = bottom, size_ = size; }

  void leave_for(const StackInfo& next, bool for_good) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &shadow_, next.bottom_, next.size_);
  }

  // On a stack that was just entered: the one that was left may be one whose bounds nobody told.
  void arrive_from(StackInfo& previous) {
    __sanitizer_finish_switch_fiber(shadow_, &previous.bottom_, &previous.size_);
  }

  void restart() { shadow_ = nullptr; }

  // Frames that nothing will ever return to still forbid parts of the stack.
  void forget_frames() { __asan_unpoison_memory_region(bottom_, size_); }

 private:
  void* shadow_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

#else

struct StackInfo {
  void set(const void*, size_t) {}
  void leave_for(const StackInfo&, bool) {}
  void arrive_from(StackInfo&) {}
  void restart() {}
  void forget_frames() {}
};

#endif

#ifdef __SANITIZE_THREAD__

constexpr bool kThreadSanitizer = true;

// While one lives, ThreadSanitizer ignores what the OS thread reads, writes and locks.
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

// Within an Unseen: it sees again.
struct Seen {
  Seen() {
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  ~Seen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  }
};

#else

constexpr bool kThreadSanitizer = false;

struct Unseen {
  Unseen() {}
};
struct Seen {
  Seen() {}
};

#endif

}  // namespace cuda_emulator
