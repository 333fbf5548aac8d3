// Mapped files whose pages cannot be had any more: they read as zeros, and it is told.
//
// Without this a file that is cut short, or whose disk fails, ends the process with a signal in the
// middle of a kernel. Nothing that was computed from a lost mapping may be used: callers ask.
#if !defined(_WIN32)
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <mutex>

#include "native.h"

namespace {

constexpr int32_t kMaxWatched = 64;

struct Watched {
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<int32_t> is_lost{0};
};

Watched watched[kMaxWatched];
struct sigaction before;
std::mutex mutex;

// Runs in whatever thread has read. All of the mapping goes, since no part of it counts now.
void on_bus_error(int, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Watched& found : watched) {
    const uintptr_t begin = found.begin, end = found.end;
    if (at < begin || at >= end) continue;
    const int kept = errno;
    void* got = mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    errno = kept;
    if (got == MAP_FAILED) break;
    found.is_lost = 1;
    return;
  }
  sigaction(SIGBUS, &before, nullptr);  // not ours: the read is tried again, and ends as ever
}

bool install() {
  struct sigaction current;
  if (sigaction(SIGBUS, nullptr, &current)) return false;
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return true;
  before = current;
  struct sigaction ours = {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  return sigaction(SIGBUS, &ours, nullptr) == 0;
}

}  // namespace

// Watches a private mapping of a file, which begins with a page; returns a number, or -1 if that
// cannot be done.
NATIVE_API int32_t native_watch(const void* data, int64_t nbytes) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!install()) return -1;
  for (int32_t number = 0; number < kMaxWatched; number++) {
    Watched& free = watched[number];
    if (free.end) continue;
    free.is_lost = 0;
    free.begin = reinterpret_cast<uintptr_t>(data);
    free.end = reinterpret_cast<uintptr_t>(data) + uintptr_t(nbytes);
    return number;
  }
  return -1;
}

// To be called before the memory is anything else.
NATIVE_API void native_unwatch(int32_t number) {
  std::lock_guard<std::mutex> lock(mutex);
  watched[number].end = 0;
  watched[number].begin = 0;
}

NATIVE_API int32_t native_is_lost(int32_t number) { return watched[number].is_lost; }
#endif
