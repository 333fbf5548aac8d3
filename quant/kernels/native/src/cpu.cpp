// See cpu.h.
#include "cpu.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

namespace native {
namespace {

// Whether the system saves tiles when it takes a core away, and has given them to this process:
// since Linux 5.16 they must be asked for. One answer holds for all threads.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kTileState = 3u << 17;  // in XCR0: configuration and data
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kTileState) != kTileState) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool cpu_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && cpu_has_avx2();
}

bool cpu_has_amx() {
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  unsigned a, b, c, d;
  if (!cpu_has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kTile) && (d & kInt8) && may_use_tiles();
}

bool cpu_has_dotprod() { return false; }

}  // namespace native

#else

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace native {

bool cpu_has_avx2() { return false; }
bool cpu_has_avx512() { return false; }
bool cpu_has_amx() { return false; }

bool cpu_has_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kAsimdDp;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;  // every 64-bit Mac has it
#else
  return false;
#endif
}

}  // namespace native
#endif
