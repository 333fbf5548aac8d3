// AMX: products with many tokens on tiles of int8, all else in AVX-512. A block of 64 weights of 16
// rows, unpacked, is a tile; so is a block of 16 tokens. Their product's integers are those of
// AVX-512, and are scaled and added in the same order, so both give the same bits.
#if defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "avx512.h"
#include "tile_registers.h"

namespace native {
namespace {

using Signed = Avx512<0>;

constexpr int kTiles = 4;  // of tokens, that share a tile of weights
constexpr int64_t kPanelTokens = kTiles * kTileRows;

// What a tile of tokens and G groups gave, before scaling.
template <int G>
struct alignas(64) Dots {
  int32_t of[G][kTileRows][kGroup];
};

// Tiles 0-3: results, two sets, so that one is scaled while the other is computed. 4-5: tokens.
// 6-7: weights.
template <class Tiles, int Set, int G>
inline void multiply(const int8_t* tokens, int64_t stride, Dots<G>& dots) {
  Tiles::template load<4 + Set>(tokens, stride);
  Tiles::template zero<2 * Set>();
  Tiles::template dot<2 * Set, 4 + Set, 6>();
  Tiles::template store<2 * Set>(dots.of[0], kTileRowBytes);
  if constexpr (G == 2) {
    Tiles::template zero<2 * Set + 1>();
    Tiles::template dot<2 * Set + 1, 4 + Set, 7>();
    Tiles::template store<2 * Set + 1>(dots.of[1], kTileRowBytes);
  }
}

template <int G>
inline void scale(const Dots<G>& dots, const Token* tokens, int64_t n, const float* const* scales,
                  int64_t b, float (*sums)[G * kGroup]) {
  Signed::Floats of_rows[G];
  for (int g = 0; g < G; g++) of_rows[g] = Signed::load_floats(scales[g] + b * kGroup);
  for (int64_t m = 0; m < n; m++) {
    NATIVE_UNROLL for (int g = 0; g < G; g++) {
      float* sum = sums[m] + g * kGroup;
      const auto ints = _mm512_load_si512(dots.of[g][m]);
      const auto added = Signed::add(Signed::load_floats(sum), ints, tokens[m].scales[b],
                                     of_rows[g]);
      Signed::store(sum, added, 1.0f);
    }
  }
}

// Up to kPanelTokens tokens with G groups. The tokens' codes lie one behind the other, and may be
// read up to a multiple of 16 tokens.
template <class Tiles, int G>
void panel(const int8_t* wide, const float* wide_scales, float unit, int64_t num_blocks,
           const Token* tokens, int64_t n, float* out, int64_t ld) {
  alignas(64) float sums[kPanelTokens][G * kGroup];
  Dots<G> dots[2];
  const float* scales[G];
  for (int g = 0; g < G; g++) scales[g] = wide_scales + g * num_blocks * kGroup;
  std::memset(sums, 0, size_t(n) * sizeof sums[0]);
  const int64_t stride = num_blocks * kBlock, num_tiles = (n + kTileRows - 1) / kTileRows;
  int64_t waiting = -1;  // the product that is not scaled yet, as block · num_tiles + tile
  const auto scale_waiting = [&] {
    const int64_t b = waiting / num_tiles, first = waiting % num_tiles * kTileRows;
    const int64_t rows = n - first < kTileRows ? n - first : kTileRows;
    scale<G>(dots[waiting & 1], tokens + first, rows, scales, b, sums + first);
  };
  for (int64_t b = 0; b < num_blocks; b++) {
    Tiles::template load<6>(wide + b * 1024, kTileRowBytes);
    if constexpr (G == 2) {
      Tiles::template load<7>(wide + (num_blocks + b) * 1024, kTileRowBytes);
    }
    for (int64_t tile = 0; tile < num_tiles; tile++) {
      const int8_t* codes = tokens[0].codes + tile * kTileRows * stride + b * kBlock;
      const int64_t product = b * num_tiles + tile;
      if (product & 1) {
        multiply<Tiles, 1, G>(codes, stride, dots[1]);
      } else {
        multiply<Tiles, 0, G>(codes, stride, dots[0]);
      }
      if (waiting >= 0) scale_waiting();
      waiting = product;
    }
  }
  scale_waiting();
  for (int64_t m = 0; m < n; m++) {
    for (int g = 0; g < G; g++) {
      Signed::store(out + m * ld + g * kGroup, Signed::load_floats(sums[m] + g * kGroup), unit);
    }
  }
}

template <class Tiles>
void tile_rows(const int8_t* wide, const float* scales, float unit, int64_t num_blocks,
               int64_t num_groups, const Token* tokens, int64_t n, float* out, int64_t ld) {
  Tiles::configure();
  for (int64_t m = 0; m < n; m += kPanelTokens) {
    const int64_t here = n - m < kPanelTokens ? n - m : kPanelTokens;
    for (int64_t g = 0; g < num_groups; g += 2) {
      const auto multiply_panel = num_groups - g > 1 ? panel<Tiles, 2> : panel<Tiles, 1>;
      multiply_panel(wide + g * num_blocks * 1024, scales + g * num_blocks * kGroup, unit,
                     num_blocks, tokens + m, here, out + m * ld + g * kGroup, ld);
    }
  }
  Tiles::release();
}

template <class Tiles>
const Kernels* tile_table() {
  static const Kernels kernels = [] {
    Kernels out = *avx512_kernels();
    out.name = Tiles::kName;
    out.joined_tokens = true;
    out.expand_packed = expand_packed<Signed>;
    out.expand_int8 = expand_int8<Signed>;
    out.wide_rows = tile_rows<Tiles>;
    return out;
  }();
  return &kernels;
}

}  // namespace

const Kernels* amx_kernels() { return tile_table<HardwareTiles>(); }
const Kernels* emulated_amx_kernels() { return tile_table<EmulatedTiles>(); }

}  // namespace native
#else
#include "kernels.h"

namespace native {
const Kernels* amx_kernels() { return nullptr; }
const Kernels* emulated_amx_kernels() { return nullptr; }
}  // namespace native
#endif
