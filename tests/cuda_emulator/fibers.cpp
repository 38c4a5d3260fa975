// Fibers and their scheduling. The switch is our own where the instruction set is known: swapcontext() saves the signal
// mask by a system call, which costs a hundred times as much.
#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#ifndef CUDA_EMULATOR_UCONTEXT

// Pushes what a call must preserve, leaves the top of the stack in *from, goes on with the stack whose top is `to`. The
// rounding mode belongs to the OS thread and stays.
extern "C" void cuda_emulator_switch(void** from, void* to);
// Where a new stack's first switch arrives: calls what restart() has put into preserved registers.
extern "C" void cuda_emulator_begin();

#if defined(__x86_64__)

asm(R"(
.pushsection .text
.hidden cuda_emulator_switch
.globl cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
  .cfi_endproc
.size cuda_emulator_switch, .-cuda_emulator_switch

.hidden cuda_emulator_begin
.globl cuda_emulator_begin
.type cuda_emulator_begin, @function
cuda_emulator_begin:
  .cfi_startproc
  .cfi_undefined rip
  movq %r12, %rdi
  callq *%r13
  ud2
  .cfi_endproc
.size cuda_emulator_begin, .-cuda_emulator_begin
.popsection
)");

namespace {

// r15, r14, r13, r12, rbx, rbp, return address; nothing above, so that the stack's aligned end is where begin calls
// from.
constexpr int kFrame = 7, kFunction = 2, kArgument = 3, kReturn = 6;

}  // namespace

#else  // aarch64

asm(R"(
.pushsection .text
.hidden cuda_emulator_switch
.globl cuda_emulator_switch
.type cuda_emulator_switch, %function
cuda_emulator_switch:
  .cfi_startproc
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .cfi_endproc
.size cuda_emulator_switch, .-cuda_emulator_switch

.hidden cuda_emulator_begin
.globl cuda_emulator_begin
.type cuda_emulator_begin, %function
cuda_emulator_begin:
  .cfi_startproc
  .cfi_undefined x30
  mov x0, x19
  blr x20
  brk #0
  .cfi_endproc
.size cuda_emulator_begin, .-cuda_emulator_begin
.popsection
)");

namespace {

constexpr int kFrame = 20, kArgument = 0, kFunction = 1, kReturn = 11;

}  // namespace

#endif
#endif

namespace cuda_emulator {

namespace {

// Room for a kernel's 32 KiB of parameters and for frames as sanitizers blow them up; untouched pages cost nothing.
constexpr size_t kStack = 512 << 10;

}  // namespace

Fiber::Fiber(unsigned number) : bytes_(kStack), stagger_(number % 64 * 320) {
  const size_t page = sysconf(_SC_PAGESIZE);
  void* const memory =
      mmap(nullptr, page + bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  // Below the stack lies a page that an overflow runs into.
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    std::perror("cuda_emulator: no memory for a thread's stack");
    std::abort();
  }
  memory_ = static_cast<char*>(memory) + page;
  stack_.set(memory_, bytes_);
}

Fiber::~Fiber() {
  const size_t page = sysconf(_SC_PAGESIZE);
  if (memory_ != nullptr) munmap(memory_ - page, page + bytes_);
}

void Fiber::restart(void (*body)(void*, Fiber&), void* argument) {
  body_ = body;
  argument_ = argument;
  stack_.restart();
#ifdef CUDA_EMULATOR_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_;
  context_.uc_stack.ss_size = bytes_ - stagger_;
  context_.uc_link = nullptr;
  // makecontext passes ints; a pointer takes two.
  const uintptr_t self = reinterpret_cast<uintptr_t>(this);
  void (*const begin_at)(unsigned, unsigned) = [](unsigned high, unsigned low) {
    begin(reinterpret_cast<Fiber*>(static_cast<uintptr_t>(uint64_t{high} << 32 | low)));
  };
  makecontext(&context_, reinterpret_cast<void (*)()>(begin_at), 2, static_cast<unsigned>(uint64_t{self} >> 32),
              static_cast<unsigned>(self));
#else
  void** const frame = reinterpret_cast<void**>(memory_ + bytes_ - stagger_) - kFrame;
  std::memset(frame, 0, kFrame * sizeof(void*));
  frame[kFunction] = reinterpret_cast<void*>(&Fiber::begin);
  frame[kArgument] = this;
  frame[kReturn] = reinterpret_cast<void*>(&cuda_emulator_begin);
  top_ = frame;
#endif
}

void Fiber::begin(Fiber* self) {
  self->arrive();
  self->body_(self->argument_, *self);
}

void Fiber::abandon() { stack_.forget_frames(); }

void Fiber::arrive() { stack_.arrive_from(previous_->stack_); }

void Fiber::switch_to(Fiber& other, bool for_good) {
  other.previous_ = this;
  stack_.leave_for(other.stack_, for_good);
#ifdef CUDA_EMULATOR_UCONTEXT
  swapcontext(&context_, &other.context_);
#else
  cuda_emulator_switch(&top_, other.top_);
#endif
  arrive();
}

unsigned ReadyThreads::take(Random* shuffle) {
  if (shuffle != nullptr) {
    const unsigned other = begin_ + shuffle->below(end_ - begin_);
    std::swap(threads_[begin_ % kMaxThreads], threads_[other % kMaxThreads]);
  }
  return threads_[begin_++ % kMaxThreads];
}

void FiberExecutor::set_seed(uint64_t seed) {
  shuffled_ = seed != 0;
  random_ = Random(seed);
}

void FiberExecutor::run(Block& block) {
  block_ = &block;
  block.enter(0);
  ready_.clear();
  for (unsigned i = 0; i < block.threads(); ++i) ready_.add(i);
  leave(host_, next(), false);
  if (!block.failed()) return;
  waiting_.fill(nullptr);
  idle_.clear();
  for (const auto& fiber : fibers_) {
    fiber->abandon();
    idle_.push_back(fiber.get());
  }
}

// The thread that is to run now; kNone if the block is done.
unsigned FiberExecutor::next() {
  if (ready_.empty())
    for (const unsigned thread : block_->settle()) ready_.add(thread);
  return block_->failed() || ready_.empty() ? kNone : ready_.take(shuffled_ ? &random_ : nullptr);
}

Fiber& FiberExecutor::idle_fiber() {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(static_cast<unsigned>(fibers_.size())));
    idle_.reserve(fibers_.size());
    return *fibers_.back();
  }
  Fiber& fiber = *idle_.back();
  idle_.pop_back();
  return fiber;
}

void FiberExecutor::leave(Fiber& self, unsigned next_thread, bool for_good) {
  if (next_thread == kNone) return self.switch_to(host_, for_good);
  Fiber* fiber = waiting_[next_thread];
  waiting_[next_thread] = nullptr;
  if (fiber == nullptr) {
    fiber = &idle_fiber();
    fiber->thread = next_thread;
    fiber->restart(body, this);
  }
  running_ = fiber;
  self.switch_to(*fiber, for_good);
}

void FiberExecutor::body(void* executor, Fiber& self) {
  FiberExecutor& my = *static_cast<FiberExecutor*>(executor);
  for (;;) {
    my.block_->become(self.thread);
    my.block_->call();
    my.block_->exit(self.thread);
    const unsigned thread = my.next();
    if (thread == kNone || my.waiting_[thread] != nullptr) {
      my.idle_.push_back(&self);
      my.leave(self, thread, true);
    }
    self.thread = thread;
  }
}

uint64_t FiberExecutor::meet(const Arrival& arrival) {
  Fiber& self = *running_;
  const unsigned thread = self.thread;
  bool released = false;
  for (const unsigned other : block_->arrive(thread, arrival)) {
    // In order, the one that completed the meeting goes on at once.
    if (other == thread && !shuffled_)
      released = true;
    else
      ready_.add(other);
  }
  if (!released || block_->failed()) {
    const unsigned other = block_->failed() ? kNone : next();
    if (other != thread) {
      waiting_[thread] = &self;
      leave(self, other, false);
      block_->become(thread);
    }
  }
  return block_->result(thread);
}

void FiberExecutor::fail(cudaError_t error, const std::string& sentence) { block_->fail(error, false, sentence); }

void FiberExecutor::abandon() {
  leave(*running_, kNone, false);
  __builtin_unreachable();
}

}  // namespace cuda_emulator
