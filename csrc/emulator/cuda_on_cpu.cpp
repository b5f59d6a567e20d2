// The scheduler of the CUDA emulator: fibers, their order, and what they wait for.
#include "emulator/cuda_on_cpu.h"

#include <array>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// swapcontext makes a system call at each switch, to keep signal masks that no fiber changes.
#if !defined(__x86_64__) || defined(REGKERN_EMULATOR_UCONTEXT)
#define RK_UCONTEXT 1
#include <ucontext.h>
#else
#define RK_UCONTEXT 0
#endif

#if defined(__SANITIZE_ADDRESS__)
#define RK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RK_ASAN 1
#endif
#endif
#ifndef RK_ASAN
#define RK_ASAN 0
#endif
#if RK_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

constinit thread_local uint3 threadIdx{0, 0, 0};
constinit thread_local uint3 blockIdx{0, 0, 0};
constinit thread_local dim3 blockDim{1, 1, 1};
constinit thread_local dim3 gridDim{1, 1, 1};

namespace regkern::emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxWarps = kMaxThreads / kWarp;
constexpr std::size_t kStackBytes = std::size_t{64} << 10;
constexpr std::size_t kStaticSharedLimit = std::size_t{48} << 10;
// NaN in every floating-point format, -1 as an index.
constexpr int kPoison = 0xff;

// ---- Fibers ----

#if !RK_UCONTEXT
// Saves what a call preserves on the stack of the one, and restores it from the stack of the other.
__attribute__((naked, noinline)) void switch_stack(void** /*rdi: from*/, void* /*rsi: to*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}
#endif

struct Context {
#if RK_UCONTEXT
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
#if RK_ASAN
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
#endif
};

// AddressSanitizer has to be told of each change of stack: `leave` before it, `arrive` after it.
inline void leave([[maybe_unused]] Context& from, [[maybe_unused]] const Context& to) {
#if RK_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
}

inline void arrive([[maybe_unused]] Context& self, [[maybe_unused]] Context* previous) {
#if RK_ASAN
  if (previous == nullptr) {
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
  } else {
    __sanitizer_finish_switch_fiber(self.fake_stack, &previous->stack, &previous->stack_bytes);
  }
#endif
}

inline void switch_registers(Context& from, Context& to) {
#if RK_UCONTEXT
  swapcontext(&from.registers, &to.registers);
#else
  switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

// A stack that runs `entry`, which never returns, and keeps running it over blocks and launches.
class Fiber {
 public:
  void resume(Context& host, void (*entry)()) {
    if (!started_) start(entry);
    leave(host, context_);
    switch_registers(host, context_);
    arrive(host, nullptr);
  }

  void suspend(Context& host) {
    leave(context_, host);
    switch_registers(context_, host);
    arrive(context_, &host);
  }

  // The first thing that `entry` does.
  void arrived(Context& host) { arrive(context_, &host); }

  // Forgets whatever runs here: the next resume starts over.
  void abandon() { started_ = false; }

  bool overflowed() const { return stack_ != nullptr && *canary() != kCanary; }

 private:
  static constexpr std::uint64_t kCanary = 0x5afe57ac5afe57acu;

  std::uint64_t* canary() const { return reinterpret_cast<std::uint64_t*>(stack_.get()); }

  void start(void (*entry)()) {
    if (stack_ == nullptr) stack_ = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
#if RK_ASAN
    // What ran here before may have left the red zones of its variables behind.
    __asan_unpoison_memory_region(stack_.get(), kStackBytes);
    context_.stack = stack_.get();
    context_.stack_bytes = kStackBytes;
    context_.fake_stack = nullptr;
#endif
    *canary() = kCanary;
#if RK_UCONTEXT
    getcontext(&context_.registers);
    context_.registers.uc_stack.ss_sp = stack_.get();
    context_.registers.uc_stack.ss_size = kStackBytes;
    context_.registers.uc_link = nullptr;
    makecontext(&context_.registers, entry, 0);
#else
    // As if `entry` had been called from address 0: six saved registers, the address that
    // switch_stack returns to, and above it the return address at which backtraces end.
    auto** top = reinterpret_cast<void**>(
        reinterpret_cast<std::uintptr_t>(stack_.get() + kStackBytes) & ~std::uintptr_t{15});
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context_.stack_pointer = top;
#endif
    started_ = true;
  }

  std::unique_ptr<std::byte[]> stack_;
  Context context_;
  bool started_ = false;
};

// ---- Order ----

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  // splitmix64
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  // Off from uniform by 2^-32 at most.
  unsigned below(unsigned bound) {
    return static_cast<unsigned>((next() >> 32) * std::uint64_t{bound} >> 32);
  }

 private:
  std::uint64_t state_;
};

inline unsigned lowest(unsigned bits) { return static_cast<unsigned>(std::countr_zero(bits)); }
inline unsigned highest(unsigned bits) {
  return 31u - static_cast<unsigned>(std::countl_zero(bits));
}

// Which of the threads that can run does, and which block is next.
class Order {
 public:
  static Order from_environment() {
    const char* text = std::getenv("REGKERN_EMULATOR_ORDER");
    const std::string value = text == nullptr ? "" : text;
    if (value.empty() || value == "forward") return Order(Mode::kForward, 0);
    if (value == "reverse") return Order(Mode::kReverse, 0);
    if (value == "shuffle") return Order(Mode::kShuffle, 0);
    constexpr std::string_view kSeeded = "shuffle:";
    if (value.starts_with(kSeeded) && value.size() > kSeeded.size() &&
        value.find_first_not_of("0123456789", kSeeded.size()) == std::string::npos) {
      return Order(Mode::kShuffle, std::strtoull(value.c_str() + kSeeded.size(), nullptr, 10));
    }
    throw std::runtime_error(
        "REGKERN_EMULATOR_ORDER: expected forward, reverse, shuffle or shuffle:<seed>, got `" +
        value + "`");
  }

  void begin_grid(std::uint64_t blocks) {
    blocks_ = blocks;
    if (mode_ != Mode::kShuffle) return;
    // An affine permutation: nothing to store for grids of any size.
    offset_ = random_.next() % blocks;
    do {
      stride_ = 1 + random_.next() % blocks;
    } while (gcd(stride_, blocks) != 1);
  }

  std::uint64_t block(std::uint64_t step) const {
    if (mode_ == Mode::kForward) return step;
    if (mode_ == Mode::kReverse) return blocks_ - 1 - step;
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(stride_) * step + offset_) %
                                      blocks_);
  }

  // A phase lasts until the next barrier of the block.
  void begin_phase(unsigned warps) {
    if (mode_ != Mode::kShuffle) return;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned j = random_.below(i + 1);
      warp_order_[i] = warp_order_[j];
      warp_order_[j] = static_cast<unsigned char>(i);
    }
    // Some races need one warp to run far ahead of the others, some need them side by side.
    run_ahead_ = (random_.next() & 1) != 0;
  }

  unsigned warp(unsigned ready) {
    if (mode_ == Mode::kForward) return lowest(ready);
    if (mode_ == Mode::kReverse) return highest(ready);
    if (!run_ahead_) return any_of(ready);
    const unsigned char* next = warp_order_.data();
    while ((ready >> *next & 1u) == 0) ++next;
    return *next;
  }

  unsigned lane(unsigned ready) {
    if (mode_ == Mode::kForward) return lowest(ready);
    if (mode_ == Mode::kReverse) return highest(ready);
    return any_of(ready);
  }

 private:
  enum class Mode : unsigned char { kForward, kReverse, kShuffle };

  Order(Mode mode, std::uint64_t seed) : mode_(mode), random_(seed) {}

  static std::uint64_t gcd(std::uint64_t a, std::uint64_t b) {
    while (b != 0) a = std::exchange(b, a % b);
    return a;
  }

  unsigned any_of(unsigned bits) {
    for (unsigned skip = random_.below(static_cast<unsigned>(std::popcount(bits))); skip > 0;
         --skip) {
      bits &= bits - 1;
    }
    return lowest(bits);
  }

  Mode mode_;
  bool run_ahead_ = false;
  Random random_;
  std::uint64_t blocks_ = 0, stride_ = 1, offset_ = 0;
  std::array<unsigned char, kMaxWarps> warp_order_{};
};

// ---- Shared memory ----

// A heap allocation of exactly the requested size, so that AddressSanitizer guards its ends.
class SharedAllocation {
 public:
  SharedAllocation(std::size_t bytes, std::size_t alignment)
      : bytes_(bytes),
        alignment_(std::max<std::size_t>(alignment, 16)),
        data_(::operator new(bytes, std::align_val_t{alignment_})) {
    poison();
  }
  SharedAllocation(SharedAllocation&& other) noexcept
      : bytes_(other.bytes_),
        alignment_(other.alignment_),
        data_(std::exchange(other.data_, nullptr)) {}
  SharedAllocation& operator=(SharedAllocation&&) = delete;
  ~SharedAllocation() { ::operator delete(data_, std::align_val_t{alignment_}); }

  void poison() { std::memset(data_, kPoison, bytes_); }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_, alignment_;
  void* data_;
};

struct StaticShared {
  const void* site;
  SharedAllocation memory;
};

// ---- Threads and the block ----

const char* name(Op op) {
  static constexpr const char* kNames[] = {
      "__syncthreads",   "__syncthreads_count", "__syncthreads_and", "__syncthreads_or",
      "__syncwarp",      "__shfl_sync",         "__shfl_up_sync",    "__shfl_down_sync",
      "__shfl_xor_sync", "__ballot_sync",       "__any_sync",        "__all_sync"};
  return kNames[static_cast<unsigned>(op)];
}

std::string at(const Where& where) {
  std::string_view file = where.file_name();
  file.remove_prefix(file.find_last_of('/') + 1);
  return std::string(file) + ":" + std::to_string(where.line());
}

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string hex(unsigned value) {
  std::string text = "0x00000000";
  for (std::size_t i = 9; value != 0; --i, value >>= 4) text[i] = "0123456789abcdef"[value & 15u];
  return text;
}

std::string to_string(const uint3& v) {
  // Not "(" + std::to_string(...): gcc 12 warns of an overlap in that, wrongly (-Wrestrict, -O3).
  std::string text = "(";
  text.append(std::to_string(v.x)).append(", ").append(std::to_string(v.y)).append(", ");
  return text.append(std::to_string(v.z)).append(")");
}

// "0-31, 40": indices in ascending order.
std::string ranges(const std::vector<unsigned>& indices) {
  std::string text;
  for (std::size_t i = 0; i < indices.size();) {
    std::size_t end = i;
    while (end + 1 < indices.size() && indices[end + 1] == indices[end] + 1) ++end;
    if (!text.empty()) text += ", ";
    text += std::to_string(indices[i]);
    if (end > i) text.append("-").append(std::to_string(indices[end]));
    i = end + 1;
  }
  return text;
}

std::vector<unsigned> lanes_of(unsigned mask) {
  std::vector<unsigned> lanes;
  for (; mask != 0; mask &= mask - 1) lanes.push_back(lowest(mask));
  return lanes;
}

enum class State : unsigned char { kReady, kWaitsForBlock, kWaitsForWarp, kExited };

struct Thread {
  State state;
  Op op;  // the operation it waits in, with its arguments and its result
  unsigned mask;
  unsigned source;
  std::uint64_t value;
  Where where;
  uint3 index;
};

// One bit per lane.
struct Warp {
  unsigned present, ready, waiting, exited;
};

class Scheduler {
 public:
  // A ucontext_t points into itself: fibers must never move.
  Scheduler() { fibers_.reserve(kMaxThreads); }

  void launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
              void (*body)(const void*), const void* state);

  // Called on fibers.
  int block_sync(Op op, int predicate, const Where& where);
  std::uint64_t warp_sync(Op op, unsigned mask, std::uint64_t value, unsigned source,
                          const Where& where);
  void* shared_array(const void* site, std::size_t bytes, std::size_t alignment);
  void* dynamic_shared() { return dynamic_->data(); }
  unsigned running() const { return running_; }
  std::string place() const;
  [[noreturn]] void run_threads();

 private:
  void begin_block();
  bool run_block();
  void run_thread();
  void exit_thread(unsigned thread);
  void make_ready(unsigned thread);
  void try_release_warp(unsigned warp, unsigned lane);
  bool complete_warp_op(unsigned warp, unsigned lanes);
  bool release_block();
  std::string describe_waits() const;
  void fail(const std::string& why);
  void suspend() { fibers_[running_].suspend(host_); }

  Context host_;
  std::vector<Fiber> fibers_;
  std::vector<Thread> threads_;
  std::array<Warp, kMaxWarps> warps_{};
  unsigned ready_warps_ = 0;  // one bit per warp with a ready lane
  unsigned count_ = 0, alive_ = 0, waiting_for_block_ = 0;
  unsigned running_ = 0;

  const char* kernel_ = nullptr;
  void (*body_)(const void*) = nullptr;
  const void* state_ = nullptr;
  Order* order_ = nullptr;
  std::exception_ptr failure_;

  std::vector<StaticShared> static_;
  std::unique_ptr<SharedAllocation> dynamic_;
};

// Set while a launch is in progress on this host thread.
constinit thread_local Scheduler* current = nullptr;

void fiber_main() { current->run_threads(); }

void Scheduler::run_threads() {
  fibers_[running_].arrived(host_);
  for (;;) {
    try {
      body_(state_);
    } catch (...) {
      failure_ = std::current_exception();
    }
    threads_[running_].state = State::kExited;
    suspend();
  }
}

std::string Scheduler::place() const {
  return std::string("kernel ") + kernel_ + ", block " + to_string(blockIdx) + ", thread " +
         to_string(threads_[running_].index);
}

void Scheduler::fail(const std::string& why) {
  failure_ = std::make_exception_ptr(std::runtime_error(
      std::string("emulator: kernel ") + kernel_ + ", block " + to_string(blockIdx) + ": " + why));
}

void Scheduler::launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                       void (*body)(const void*), const void* state) {
  Order order = Order::from_environment();
  kernel_ = kernel;
  body_ = body;
  state_ = state;
  order_ = &order;
  failure_ = nullptr;
  static_.clear();
  dynamic_ = std::make_unique<SharedAllocation>(shared_bytes, 16);
  gridDim = grid;
  blockDim = block;

  count_ = block.x * block.y * block.z;
  while (fibers_.size() < count_) fibers_.emplace_back();
  threads_.assign(count_, Thread{});
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  }

  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  order.begin_grid(blocks);
  for (std::uint64_t step = 0; step < blocks; ++step) {
    const std::uint64_t index = order.block(step);
    blockIdx = {static_cast<unsigned>(index % grid.x),
                static_cast<unsigned>(index / grid.x % grid.y),
                static_cast<unsigned>(index / grid.x / grid.y)};
    if (!run_block()) break;
  }

  for (unsigned i = 0; i < count_ && failure_ == nullptr; ++i) {
    if (fibers_[i].overflowed()) fail("a thread overflowed its stack of 64 KiB");
  }
  if (failure_ != nullptr) {
    for (unsigned i = 0; i < count_; ++i) {
      if (threads_[i].state != State::kExited || fibers_[i].overflowed()) fibers_[i].abandon();
    }
  }
  static_.clear();
  dynamic_.reset();
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Scheduler::begin_block() {
  dynamic_->poison();
  for (StaticShared& array : static_) array.memory.poison();
  for (Thread& thread : threads_) thread.state = State::kReady;
  ready_warps_ = 0;
  for (unsigned w = 0; w * kWarp < count_; ++w) {
    const unsigned lanes = std::min(kWarp, count_ - w * kWarp);
    const unsigned present = 0xffffffffu >> (kWarp - lanes);
    warps_[w] = {present, present, 0, 0};
    ready_warps_ |= 1u << w;
  }
  alive_ = count_;
  waiting_for_block_ = 0;
  order_->begin_phase((count_ + kWarp - 1) / kWarp);
}

bool Scheduler::run_block() {
  begin_block();
  for (;;) {
    while (ready_warps_ != 0) {
      run_thread();
      if (failure_ != nullptr) return false;
    }
    if (alive_ == 0) return true;
    if (waiting_for_block_ != alive_) {
      fail("deadlock: " + describe_waits());
      return false;
    }
    if (!release_block()) return false;
  }
}

void Scheduler::run_thread() {
  const unsigned w = order_->warp(ready_warps_);
  const unsigned lane = order_->lane(warps_[w].ready);
  warps_[w].ready &= ~(1u << lane);
  if (warps_[w].ready == 0) ready_warps_ &= ~(1u << w);

  running_ = w * kWarp + lane;
  const Thread& thread = threads_[running_];
  threadIdx = thread.index;
  fibers_[running_].resume(host_, fiber_main);
  switch (thread.state) {
    case State::kExited:
      exit_thread(running_);
      break;
    case State::kWaitsForBlock:
      ++waiting_for_block_;
      break;
    case State::kWaitsForWarp:
      warps_[w].waiting |= 1u << lane;
      try_release_warp(w, lane);
      break;
    case State::kReady:
      break;
  }
}

void Scheduler::exit_thread(unsigned thread) {
  const unsigned w = thread / kWarp;
  warps_[w].exited |= 1u << thread % kWarp;
  --alive_;
  // A __syncwarp does not wait for lanes that have exited: this may have been the last one.
  for (unsigned lanes = warps_[w].waiting; lanes != 0; lanes &= lanes - 1) {
    const unsigned lane = lowest(lanes);
    const bool still_waits = (warps_[w].waiting >> lane & 1u) != 0;
    if (still_waits && threads_[w * kWarp + lane].op == Op::kSyncWarp) try_release_warp(w, lane);
  }
}

void Scheduler::make_ready(unsigned thread) {
  threads_[thread].state = State::kReady;
  warps_[thread / kWarp].ready |= 1u << thread % kWarp;
  ready_warps_ |= 1u << thread / kWarp;
}

// Releases the lanes that `lane` waits for, once all of them wait in the same operation. Lanes that
// the block does not have count as absent whatever the mask says, as on the GPU; a lane that has
// exited is accepted by __syncwarp only, since a vote or a shuffle would need its value.
void Scheduler::try_release_warp(unsigned w, unsigned lane) {
  Warp& warp = warps_[w];
  const Thread& first = threads_[w * kWarp + lane];
  unsigned lanes = first.mask & warp.present;
  if (first.op == Op::kSyncWarp) lanes &= ~warp.exited;
  if ((lanes & ~warp.waiting) != 0) return;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& other = threads_[w * kWarp + lowest(rest)];
    if (other.op != first.op || other.mask != first.mask) return;
  }
  if (!complete_warp_op(w, lanes)) return;
  warp.waiting &= ~lanes;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) make_ready(w * kWarp + lowest(rest));
}

// Replaces the value of each lane with its result.
bool Scheduler::complete_warp_op(unsigned w, unsigned lanes) {
  Thread* const thread = &threads_[w * kWarp];
  const Op op = thread[lowest(lanes)].op;
  if (op == Op::kSyncWarp) return true;

  std::array<std::uint64_t, kWarp> values;
  unsigned votes = 0;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const unsigned lane = lowest(rest);
    values[lane] = thread[lane].value;
    if (values[lane] != 0) votes |= 1u << lane;
  }
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const unsigned lane = lowest(rest);
    Thread& self = thread[lane];
    switch (op) {
      case Op::kBallot:
        self.value = votes;
        break;
      case Op::kAny:
        self.value = votes != 0;
        break;
      case Op::kAll:
        self.value = votes == lanes;
        break;
      default:
        if (self.source >= kWarp || (lanes >> self.source & 1u) == 0) {
          fail(std::string(name(op)) + " at " + at(self.where) + ": thread " +
               to_string(self.index) + " reads from lane " + std::to_string(self.source) +
               ", which does not take part (mask " + hex(self.mask) + ", lanes taking part " +
               hex(lanes) + ")");
          return false;
        }
        self.value = values[self.source];
    }
  }
  return true;
}

bool Scheduler::release_block() {
  const Thread* first = nullptr;
  int votes = 0;
  for (const Thread& thread : threads_) {
    if (thread.state != State::kWaitsForBlock) continue;
    if (first == nullptr) first = &thread;
    if (thread.op != first->op || !same_place(thread.where, first->where)) {
      fail("divergent barrier: " + describe_waits());
      return false;
    }
    votes += thread.value != 0;
  }
  int result = votes;
  if (first->op == Op::kSyncThreadsAnd) result = votes == static_cast<int>(alive_);
  if (first->op == Op::kSyncThreadsOr) result = votes != 0;
  for (unsigned i = 0; i < count_; ++i) {
    if (threads_[i].state != State::kWaitsForBlock) continue;
    threads_[i].value = static_cast<std::uint64_t>(result);
    make_ready(i);
  }
  waiting_for_block_ = 0;
  order_->begin_phase((count_ + kWarp - 1) / kWarp);
  return true;
}

std::string Scheduler::describe_waits() const {
  struct Group {
    const Thread* thread;
    unsigned warp;
    std::vector<unsigned> members;
  };
  std::vector<Group> groups;
  std::vector<unsigned> exited;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == State::kExited) {
      exited.push_back(i);
      continue;
    }
    const bool in_warp = thread.state == State::kWaitsForWarp;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
      return g.thread->op == thread.op && same_place(g.thread->where, thread.where) &&
             (!in_warp || (g.warp == i / kWarp && g.thread->mask == thread.mask));
    });
    if (group == groups.end()) group = groups.insert(group, Group{&thread, i / kWarp, {}});
    group->members.push_back(i);
  }
  std::string text;
  for (const Group& group : groups) {
    if (!text.empty()) text += "; ";
    text += "threads " + ranges(group.members) + " wait in " + name(group.thread->op) + " at " +
            at(group.thread->where);
    if (group.thread->state != State::kWaitsForWarp) continue;
    text += " with mask " + hex(group.thread->mask);
    const unsigned gone = group.thread->mask & warps_[group.warp].exited;
    if (gone != 0) text += ", which names the exited lanes " + ranges(lanes_of(gone));
  }
  if (!exited.empty()) text += "; threads " + ranges(exited) + " have exited";
  return text;
}

int Scheduler::block_sync(Op op, int predicate, const Where& where) {
  Thread& self = threads_[running_];
  self.state = State::kWaitsForBlock;
  self.op = op;
  self.value = predicate != 0;
  self.where = where;
  suspend();
  return static_cast<int>(self.value);
}

std::uint64_t Scheduler::warp_sync(Op op, unsigned mask, std::uint64_t value, unsigned source,
                                   const Where& where) {
  if ((mask >> running_ % kWarp & 1u) == 0) {
    throw std::runtime_error("emulator: " + place() + ": " + name(op) + " at " + at(where) +
                             ": mask " + hex(mask) + " does not name the calling lane");
  }
  Thread& self = threads_[running_];
  self.state = State::kWaitsForWarp;
  self.op = op;
  self.mask = mask;
  self.source = source;
  self.value = value;
  self.where = where;
  suspend();
  return self.value;
}

void* Scheduler::shared_array(const void* site, std::size_t bytes, std::size_t alignment) {
  std::size_t total = bytes;
  for (const StaticShared& array : static_) {
    if (array.site == site) return array.memory.data();
    total += array.memory.bytes();
  }
  if (total > kStaticSharedLimit) {
    throw std::runtime_error("emulator: " + place() + ": " + std::to_string(total) +
                             " bytes of static shared memory exceed " +
                             std::to_string(kStaticSharedLimit));
  }
  return static_.emplace_back(StaticShared{site, SharedAllocation(bytes, alignment)}).memory.data();
}

Scheduler& in_kernel() {
  if (current == nullptr) {
    throw std::runtime_error("emulator: a device function was called outside of a kernel");
  }
  return *current;
}

}  // namespace

void launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
            void (*body)(const void*), const void* state) {
  if (current != nullptr) {
    throw std::runtime_error("emulator: a kernel cannot launch kernel " + std::string(kernel));
  }
  // One a host thread: stacks stay allocated and launches do not lock.
  thread_local Scheduler scheduler;
  struct Active {
    explicit Active(Scheduler* s) { current = s; }
    ~Active() { current = nullptr; }
  } active(&scheduler);
  scheduler.launch(kernel, grid, block, shared_bytes, body, state);
}

void* shared_array(const void* site, std::size_t bytes, std::size_t alignment) {
  return in_kernel().shared_array(site, bytes, alignment);
}

void* dynamic_shared() { return in_kernel().dynamic_shared(); }

int block_sync(Op op, int predicate, Where where) {
  return in_kernel().block_sync(op, predicate, where);
}

std::uint64_t warp_sync(Op op, unsigned mask, std::uint64_t value, unsigned source, Where where) {
  return in_kernel().warp_sync(op, mask, value, source, where);
}

unsigned lane_id() { return in_kernel().running() % kWarp; }

void trap(Where where) {
  throw std::runtime_error("emulator: " + in_kernel().place() + ": __trap() at " + at(where));
}

void bad_shuffle_width(int width, Where where) {
  throw std::runtime_error("emulator: " + in_kernel().place() + ": shuffle at " + at(where) +
                           ": width " + std::to_string(width) +
                           " is not a power of two between 1 and 32");
}

}  // namespace regkern::emulator
