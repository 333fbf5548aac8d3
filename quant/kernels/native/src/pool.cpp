// See pool.h.
#include "pool.h"

#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace native {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or for kSpin; the clock is read rarely since that costs as much as a spin.
template <class Done>
bool spin(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; i++) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return getpid();
#else
  return 0;
#endif
}

}  // namespace

// Never destroyed: its threads sleep until the process ends. A forked child has none of its
// parent's threads, so it gets a pool of its own; and of its locks those that were held at that
// moment for ever, so that a call takes none here.
Pool& Pool::instance() {
  static std::mutex mutex;
  static std::atomic<Pool*> current{nullptr};
  const int64_t process = process_id();
  Pool* pool = current.load();
  if (pool && pool->owner_ == process) return *pool;
  std::lock_guard<std::mutex> lock(mutex);
  Pool* before = current.load();
  if (before && before->owner_ == process) return *before;
  pool = new Pool(process);
  pool->set_num_threads(before ? before->num_threads() : 1);
  current.store(pool);
  return *pool;
}

void Pool::set_num_threads(int num_threads) {
  std::lock_guard<std::mutex> lock(guard_);
  num_threads = num_threads < 1 ? 1 : num_threads > kMaxThreads ? kMaxThreads : num_threads;
  for (int thread = num_started_; thread < num_threads; thread++) {
    try {
      std::thread([this, thread] { work(thread); }).detach();
    } catch (const std::system_error&) {  // a limit of threads or of memory: fewer will do
      num_threads = thread;
      break;
    }
    num_started_ = thread + 1;
  }
  num_threads_ = num_threads;
}

void Pool::announce() {
  ticket_.fetch_add(1);
  if (num_sleeping_.load() > 0) {
    // Without the lock a thread between its last look and its sleep would miss the news.
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
  }
}

void Pool::wait_for_change(uint32_t seen, bool may_spin) {
  const auto changed = [&] { return ticket_.load() != seen; };
  if (may_spin && spin(changed)) return;
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  num_sleeping_.fetch_add(1);
  wake_.wait(lock, changed);
  num_sleeping_.fetch_sub(1);
}

void Pool::work(int thread) {
  for (uint32_t seen = 0;;) {
    wait_for_change(seen, thread < num_threads_.load());
    seen = ticket_.load();
    if (thread >= num_threads_.load()) continue;
    num_inside_.fetch_add(1);
    if (open_.load()) drain(thread);
    num_inside_.fetch_sub(1);
  }
}

// Takes chunks until the current phase has none left.
void Pool::drain(int thread) {
  for (;;) {
    const int phase = phase_.load();
    if (phase >= num_phases_) return;
    const Phase& job = phases_[phase];
    const int64_t chunk = next_[phase].value.fetch_add(1);
    if (chunk >= job.num_chunks) {
      // Staying here for the next phase spares all threads the counter of who is inside.
      if (!spin([&] { return phase_.load() != phase; })) return;
      continue;
    }
    job.body(job.context, chunk, thread);
    if (done_[phase].value.fetch_add(1) + 1 == job.num_chunks) {
      if (job.last) job.last(job.context);
      phase_.store(ends_early_ ? num_phases_ : phase + 1);
      announce();
    }
  }
}

void Pool::reserve(int num_phases) {
  if (num_phases <= max_phases_) return;
  std::unique_ptr<Phase[]> phases(new Phase[size_t(num_phases)]);
  std::unique_ptr<Counter[]> next(new Counter[size_t(num_phases)]);
  done_.reset(new Counter[size_t(num_phases)]);
  phases_ = std::move(phases);
  next_ = std::move(next);
  max_phases_ = num_phases;
}

void Pool::run(const Phase* phases, int num_phases) {
  num_phases_ = 0;
  for (int i = 0; i < num_phases; i++) {
    if (phases[i].num_chunks == 0) continue;
    phases_[num_phases_] = phases[i];
    next_[num_phases_].value.store(0);
    done_[num_phases_].value.store(0);
    num_phases_++;
  }
  ends_early_ = false;
  phase_.store(0);
  open_.store(true);
  announce();
  for (uint32_t seen = ticket_.load(); phase_.load() < num_phases_; seen = ticket_.load()) {
    drain(0);
    if (phase_.load() >= num_phases_) break;
    // A ticket read before drain() cannot hide a phase that ended after it.
    wait_for_change(seen, true);
  }
  open_.store(false);
  while (num_inside_.load() > 0) {
    if (!spin([&] { return num_inside_.load() == 0; })) std::this_thread::yield();
  }
}

}  // namespace native
