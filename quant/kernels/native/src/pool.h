// The threads of the native kernels: started once, asleep when there is no work.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

namespace native {

constexpr int kMaxThreads = 256;

// A number of chunks that may run in any order on any thread; all are done before the next phase.
struct Phase {
  int64_t num_chunks;
  void (*body)(void* context, int64_t chunk, int thread);
  void* context;
  // Runs once, on the thread that ends the last chunk, before the next phase begins.
  void (*last)(void* context) = nullptr;
};

// Threads take chunks from a shared counter, so one that the system slows down takes fewer. Nobody
// waits for a thread that did not come: a phase is over when its chunks are, and a thread that
// finds none left waits for the next one, at first by spinning for a few tens of microseconds.
class Pool {
 public:
  static Pool& instance();

  // As many as the system gives, at most so many.
  void set_num_threads(int num_threads);
  int num_threads() const { return num_threads_.load(); }

  // Runs the phases in order on all threads, the caller's included (as thread 0). One caller at a
  // time: others wait their turn on `guard()`, which the caller must hold.
  void run(const Phase* phases, int num_phases);
  // For the `last` of a phase: those after it are left out.
  void end_early() { ends_early_ = true; }
  // Makes room for calls of so many phases; throws bad_alloc. For a holder of the guard.
  void reserve(int num_phases);
  std::mutex& guard() { return guard_; }

 private:
  explicit Pool(int64_t owner) : owner_(owner) {}
  void work(int thread);
  void drain(int thread);
  void announce();
  void wait_for_change(uint32_t seen, bool may_spin);

  const int64_t owner_;  // the process whose threads these are
  std::mutex guard_, sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<int> num_threads_{1}, num_started_{1};
  std::atomic<uint32_t> ticket_{0};  // changes whenever there may be something new to do
  std::atomic<int> num_sleeping_{0}, num_inside_{0};
  std::atomic<bool> open_{false};
  bool ends_early_ = false;  // of the thread that ends a phase

  static constexpr int kFewPhases = 4;  // what needs no reserve()
  int max_phases_ = kFewPhases, num_phases_ = 0;
  std::atomic<int> phase_{0};
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  std::unique_ptr<Phase[]> phases_{new Phase[kFewPhases]};
  std::unique_ptr<Counter[]> next_{new Counter[kFewPhases]}, done_{new Counter[kFewPhases]};
};

}  // namespace native
