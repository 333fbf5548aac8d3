// The eight tile registers of AMX: 16 rows of 64 bytes each. All that the products ask of them is
// below, twice: as the instructions, and emulated for CPUs without them, to be tested there.
#pragma once
#include <cstdint>
#include <cstring>

namespace native {
namespace {

constexpr int kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;

#if defined(__AMX_INT8__)
// Every statement says that it touches memory: the compiler knows neither what a tile load reads
// nor what a tile store writes.
struct HardwareTiles {
  static constexpr const char* kName = "amx";

  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };

  static void configure() {
    // Static: gcc up to 12 drops stores to a local one, of which it thinks that 8 bytes are read.
    static const Configuration configuration;
    asm volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
  }
  // Leaves nothing for the system to save when it takes the core away.
  static void release() { asm volatile("tilerelease" ::: "memory"); }
  template <int T>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T) : "memory");
  }
  template <int T>
  static void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(rows), "r"(stride) : "memory");
  }
  // C[m, n] += Σ A[m, k] · B[k / 4, 4 n + k % 4] in int32, of signed bytes.
  template <int C, int A, int B>
  static void dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
  }
  template <int T>
  static void store(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(rows), "r"(stride) : "memory");
  }
};
#endif

struct EmulatedTiles {
  static constexpr const char* kName = "amx-emulated";

  struct alignas(64) Tile {
    int8_t bytes[kTileRows * kTileRowBytes];
  };
  static Tile& at(int tile) {
    static thread_local Tile tiles[8];
    return tiles[tile];
  }

  static void configure() {}
  static void release() {}
  template <int T>
  static void zero() {
    std::memset(at(T).bytes, 0, sizeof(Tile));
  }
  template <int T>
  static void load(const void* rows, int64_t stride) {
    for (int r = 0; r < kTileRows; r++) {
      std::memcpy(at(T).bytes + r * kTileRowBytes,
                  static_cast<const char*>(rows) + r * stride, kTileRowBytes);
    }
  }
  template <int C, int A, int B>
  static void dot() {
    const int8_t *a = at(A).bytes, *b = at(B).bytes;
    for (int m = 0; m < kTileRows; m++) {
      int32_t sums[16];
      std::memcpy(sums, at(C).bytes + m * kTileRowBytes, sizeof sums);
      for (int k = 0; k < kTileRowBytes; k++) {
        const int8_t* row = b + k / 4 * kTileRowBytes + k % 4;
        for (int n = 0; n < 16; n++) sums[n] += int32_t(a[m * kTileRowBytes + k]) * row[4 * n];
      }
      std::memcpy(at(C).bytes + m * kTileRowBytes, sums, sizeof sums);
    }
  }
  template <int T>
  static void store(void* rows, int64_t stride) {
    for (int r = 0; r < kTileRows; r++) {
      std::memcpy(static_cast<char*>(rows) + r * stride, at(T).bytes + r * kTileRowBytes,
                  kTileRowBytes);
    }
  }
};

}  // namespace
}  // namespace native
