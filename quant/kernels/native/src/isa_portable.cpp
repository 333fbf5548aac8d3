// Plain C++, for every CPU; also the definition of what an instruction set must provide.
#include "tiles.h"

namespace native {
namespace {

struct Portable {
  static constexpr const char* kName = "portable";
  static constexpr int kTokens = 2, kGroups = 1;  // tile of the wide product
  static constexpr int kDirectTokens = 2;         // tile that unpacks in registers
  static constexpr int kMaxDirectPacked = 2, kMaxDirectInt8 = 4;
  static constexpr int kQueries = 2, kColumns = 1;

  struct Words { int8_t v[64]; };
  struct Ints { int32_t v[16]; };
  struct Floats { float v[16]; };
  struct Levels { int8_t v[16]; };
  using Spread = const int8_t*;

  static void prefetch(uintptr_t) {}
  static Levels levels(const int8_t* values) {
    Levels out;
    std::memcpy(out.v, values, 16);
    return out;
  }
  // pair[0] takes the low nibbles (codes 0 2 4 6 of each word), pair[1] the high ones.
  static void unpack(const uint8_t* p, const Levels& levels, Words* pair) {
    for (int i = 0; i < 64; i++) {
      pair[0].v[i] = levels.v[p[i] & 15];
      pair[1].v[i] = levels.v[p[i] >> 4];
    }
  }
  static Words load_words(const int8_t* p) {
    Words out;
    std::memcpy(out.v, p, 64);
    return out;
  }
  static void store_words(int8_t* p, const Words& words) { std::memcpy(p, words.v, 64); }
  static Spread spread(const int8_t* x) { return x; }

  static Floats zero() { return {}; }
  static Ints start(int32_t) { return {}; }
  static Ints dot(Ints sum, const Words& words, Spread x) {
    for (int r = 0; r < 16; r++) {
      const int8_t* w = words.v + 4 * r;
      sum.v[r] += w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
    }
    return sum;
  }
  static Floats load_halves(const uint16_t* p) {
    Floats out;
    for (int r = 0; r < 16; r++) out.v[r] = half_to_float(p[r]);
    return out;
  }
  static Floats load_floats(const float* p) {
    Floats out;
    std::memcpy(out.v, p, 64);
    return out;
  }
  static Floats load_bfloats(const uint16_t* p) {
    Floats out;
    for (int r = 0; r < 16; r++) out.v[r] = float_of(uint32_t(p[r]) << 16);
    return out;
  }
  static Floats splat(float x) {
    Floats out;
    for (float& lane : out.v) lane = x;
    return out;
  }
  static Floats fma(Floats sum, const Floats& a, const Floats& b) {
    for (int r = 0; r < 16; r++) sum.v[r] += a.v[r] * b.v[r];
    return sum;
  }
  static Floats add(Floats sum, const Ints& dots, float scale, const Floats& scales) {
    for (int r = 0; r < 16; r++) sum.v[r] += float(dots.v[r]) * scale * scales.v[r];
    return sum;
  }
  static void store(float* out, const Floats& sum, float unit) {
    for (int r = 0; r < 16; r++) out[r] = sum.v[r] * unit;
  }

  // Along one row: lane i sums the codes 4i … 4i+3 of a block.
  static Ints dot_block(const int8_t* w, const int8_t* x, int32_t) {
    Ints out;
    for (int i = 0; i < 16; i++) {
      out.v[i] = w[4 * i] * x[4 * i] + w[4 * i + 1] * x[4 * i + 1] + w[4 * i + 2] * x[4 * i + 2] +
                 w[4 * i + 3] * x[4 * i + 3];
    }
    return out;
  }
  static Floats add_block(Floats sum, const Ints& dots, float scale) {
    for (int i = 0; i < 16; i++) sum.v[i] += float(dots.v[i]) * scale;
    return sum;
  }
  static float total(const Floats& sum) {
    float out = 0;
    for (float lane : sum.v) out += lane;
    return out;
  }
  // 16 rows × 64 codes to 16 words × 16 rows × 4 codes.
  static void transpose(const int8_t* p, int64_t stride, int8_t* wide) {
    for (int r = 0; r < 16; r++)
      for (int t = 0; t < 16; t++) std::memcpy(wide + t * 64 + r * 4, p + r * stride + t * 4, 4);
  }
};

}  // namespace

const Kernels* portable_kernels() { return table<Portable>(); }

}  // namespace native
