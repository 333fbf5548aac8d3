// The products, written once over an instruction set `Isa`. See isa_portable.cpp for what one is:
//   Words: 16 rows × 4 int8 codes   Spread: 4 activation codes for all rows
//   Ints, Floats: 16 lanes          kTokens, kGroups: the tile that fits its registers
// Every row is summed in the same order whatever the tile, so results depend neither on how rows
// are split over threads nor on how tokens are split over tiles.
#pragma once
#include "attention.h"
#include "decoding.h"
#include "elementwise.h"

namespace native {
namespace {

// How far ahead of its reads a product asks for memory: two pages, since the hardware stops at the
// end of each; scales come 16 times slower than codes. Past the end of a weight this is a hint about
// an address that nobody reads, which is harmless.
constexpr uintptr_t kAheadCodes = 8192, kAheadScales = 512;

// Codes of 4 bits as they lie in memory.
template <class Isa>
struct Packed {
  const uint8_t* codes;
  const uint16_t* absmax;
  typename Isa::Levels levels;
  int64_t num_blocks;

  Packed from_group(int64_t g) const {
    return {codes + g * num_blocks * 512, absmax + g * num_blocks * kGroup, levels, num_blocks};
  }
  void words(int64_t g, int64_t b, int t, typename Isa::Words* pair) const {
    const uint8_t* p = codes + (g * num_blocks + b) * 512 + t * 64;
    Isa::prefetch(uintptr_t(p) + kAheadCodes);
    Isa::unpack(p, levels, pair);
  }
  typename Isa::Floats scales(int64_t g, int64_t b) const {
    const uint16_t* p = absmax + (g * num_blocks + b) * kGroup;
    Isa::prefetch(uintptr_t(p) + kAheadScales);
    return Isa::load_halves(p);
  }
};

// Codes unpacked to int8 by expand_packed or expand_int8.
template <class Isa>
struct Wide {
  const int8_t* codes;
  const float* absmax;
  int64_t num_blocks;

  Wide from_group(int64_t g) const {
    return {codes + g * num_blocks * 1024, absmax + g * num_blocks * kGroup, num_blocks};
  }
  void words(int64_t g, int64_t b, int t, typename Isa::Words* pair) const {
    const int8_t* p = codes + (g * num_blocks + b) * 1024 + t * 128;
    pair[0] = Isa::load_words(p);
    pair[1] = Isa::load_words(p + 64);
  }
  typename Isa::Floats scales(int64_t g, int64_t b) const {
    return Isa::load_floats(absmax + (g * num_blocks + b) * kGroup);
  }
};

template <class Isa, int M, int G, class Source>
inline void tile(const Source& source, float unit, const Token* tokens, float* out, int64_t ld) {
  typename Isa::Floats sums[M][G];
  NATIVE_UNROLL for (int m = 0; m < M; m++) {
    NATIVE_UNROLL for (int g = 0; g < G; g++) sums[m][g] = Isa::zero();
  }
  for (int64_t b = 0; b < source.num_blocks; b++) {
    typename Isa::Ints dots[M][G];
    NATIVE_UNROLL for (int m = 0; m < M; m++) {
      NATIVE_UNROLL for (int g = 0; g < G; g++) dots[m][g] = Isa::start(tokens[m].offsets[b]);
    }
    for (int t = 0; t < 8; t++) {
      typename Isa::Words words[G][2];
      NATIVE_UNROLL for (int g = 0; g < G; g++) source.words(g, b, t, words[g]);
      NATIVE_UNROLL for (int half = 0; half < 2; half++) {
        NATIVE_UNROLL for (int m = 0; m < M; m++) {
          const auto x = Isa::spread(tokens[m].codes + b * kBlock + t * 8 + half * 4);
          NATIVE_UNROLL for (int g = 0; g < G; g++) {
            dots[m][g] = Isa::dot(dots[m][g], words[g][half], x);
          }
        }
      }
    }
    NATIVE_UNROLL for (int g = 0; g < G; g++) {
      const auto scales = source.scales(g, b);
      NATIVE_UNROLL for (int m = 0; m < M; m++) {
        sums[m][g] = Isa::add(sums[m][g], dots[m][g], tokens[m].scales[b], scales);
      }
    }
  }
  NATIVE_UNROLL for (int m = 0; m < M; m++) {
    NATIVE_UNROLL for (int g = 0; g < G; g++) {
      Isa::store(out + m * ld + g * kGroup, sums[m][g], unit);
    }
  }
}

// All groups of a source for M tokens, G groups at a time.
template <class Isa, int M, int G, class Source>
inline void groups(const Source& source, float unit, int64_t num_groups, const Token* tokens,
                   float* out, int64_t ld) {
  int64_t g = 0;
  for (; g + G <= num_groups; g += G) {
    tile<Isa, M, G>(source.from_group(g), unit, tokens, out + g * kGroup, ld);
  }
  for (; g < num_groups; g++) {
    tile<Isa, M, 1>(source.from_group(g), unit, tokens, out + g * kGroup, ld);
  }
}

template <class Isa>
void packed_rows(const uint8_t* codes, const uint16_t* absmax, const int8_t* levels, float unit,
                 int64_t num_blocks, int64_t num_groups, const Token* tokens, int64_t n, float* out,
                 int64_t ld) {
  const Packed<Isa> source{codes, absmax, Isa::levels(levels), num_blocks};
  for (int64_t m = 0; m < n;) {
    m += largest_tile<Isa::kDirectTokens>(n - m, [&](auto count) {
      // One group at a time is one stream of memory, which is what prefetching serves best.
      groups<Isa, decltype(count)::value, 1>(source, unit, num_groups, tokens + m, out + m * ld,
                                             ld);
    });
  }
}

template <class Isa>
void wide_rows(const int8_t* wide, const float* scales, float unit, int64_t num_blocks,
               int64_t num_groups, const Token* tokens, int64_t n, float* out, int64_t ld) {
  const Wide<Isa> source{wide, scales, num_blocks};
  for (int64_t m = 0; m < n;) {
    m += largest_tile<Isa::kTokens>(n - m, [&](auto count) {
      groups<Isa, decltype(count)::value, Isa::kGroups>(source, unit, num_groups, tokens + m,
                                                        out + m * ld, ld);
    });
  }
}

// One row at a time, again one stream.
template <class Isa, int M>
inline void int8_row(const int8_t* codes, float scale, int64_t num_cols, const Token* tokens,
                     float* out, int64_t ld) {
  typename Isa::Floats sums[M];
  NATIVE_UNROLL for (int m = 0; m < M; m++) sums[m] = Isa::zero();
  const auto block = [&](const int8_t* p, int64_t b) {
    Isa::prefetch(uintptr_t(p) + kAheadCodes);
    NATIVE_UNROLL for (int m = 0; m < M; m++) {
      const auto dots = Isa::dot_block(p, tokens[m].codes + b * kBlock, tokens[m].offsets[b]);
      sums[m] = Isa::add_block(sums[m], dots, tokens[m].scales[b]);
    }
  };
  const int64_t whole = num_cols / kBlock;
  for (int64_t b = 0; b < whole; b++) block(codes + b * kBlock, b);
  if (whole * kBlock < num_cols) {
    alignas(64) int8_t tail[kBlock] = {};
    std::memcpy(tail, codes + whole * kBlock, size_t(num_cols - whole * kBlock));
    block(tail, whole);
  }
  NATIVE_UNROLL for (int m = 0; m < M; m++) out[m * ld] = Isa::total(sums[m]) * scale;
}

template <class Isa>
void int8_rows(const int8_t* codes, const float* absmax, float unit, int64_t num_cols,
               int64_t num_rows, const Token* tokens, int64_t n, float* out, int64_t ld) {
  for (int64_t m = 0; m < n;) {
    m += largest_tile<Isa::kDirectTokens>(n - m, [&](auto count) {
      for (int64_t r = 0; r < num_rows; r++) {
        int8_row<Isa, decltype(count)::value>(codes + r * num_cols, absmax[r] * unit, num_cols,
                                              tokens + m, out + m * ld + r, ld);
      }
    });
  }
}

template <class Isa>
void expand_packed(const uint8_t* codes, const uint16_t* absmax, const int8_t* levels,
                   int64_t num_blocks, int64_t num_groups, int8_t* wide, float* scales) {
  const auto table = Isa::levels(levels);
  for (int64_t i = 0; i < num_groups * num_blocks; i++) {
    for (int t = 0; t < 8; t++) {
      typename Isa::Words pair[2];
      Isa::unpack(codes + i * 512 + t * 64, table, pair);
      Isa::store_words(wide + i * 1024 + t * 128, pair[0]);
      Isa::store_words(wide + i * 1024 + t * 128 + 64, pair[1]);
    }
    for (int r = 0; r < kGroup; r++) scales[i * kGroup + r] = half_to_float(absmax[i * kGroup + r]);
  }
}

// Rows past the last and columns past the last become zeros.
template <class Isa>
void expand_int8(const int8_t* codes, const float* absmax, int64_t num_cols, int64_t num_rows,
                 int8_t* wide, float* scales) {
  const int64_t num_blocks = (num_cols + kBlock - 1) / kBlock;
  for (int64_t first = 0; first < num_rows; first += kGroup) {
    const int64_t rows = num_rows - first < kGroup ? num_rows - first : kGroup;
    for (int64_t b = 0; b < num_blocks; b++) {
      const int8_t* p = codes + first * num_cols + b * kBlock;
      const int64_t cols = num_cols - b * kBlock < kBlock ? num_cols - b * kBlock : kBlock;
      alignas(64) int8_t padded[kGroup * kBlock];
      int64_t stride = num_cols;
      if (rows < kGroup || cols < kBlock) {
        std::memset(padded, 0, sizeof padded);
        for (int64_t r = 0; r < rows; r++) {
          std::memcpy(padded + r * kBlock, p + r * num_cols, size_t(cols));
        }
        p = padded;
        stride = kBlock;
      }
      Isa::transpose(p, stride, wide);
      wide += kGroup * kBlock;
      for (int r = 0; r < kGroup; r++) *scales++ = r < rows ? absmax[first + r] : 0.0f;
    }
  }
}

template <class Isa>
const Kernels* table() {
  static const Kernels kernels = {
      Isa::kName,       Isa::kMaxDirectPacked, Isa::kMaxDirectInt8, false,
      quantize,         widen,                 narrow,              swiglu,
      add_scaled,       packed_rows<Isa>,      int8_rows<Isa>,      encode_block,
      expand_packed<Isa>, expand_int8<Isa>,    wide_rows<Isa>,      round_bf16,
      rms_norm<Isa>,    dot<Isa>,              attend<Isa>,         attend_many<Isa>,
      read_words,
  };
  return &kernels;
}

}  // namespace
}  // namespace native
