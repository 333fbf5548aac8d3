// 64-bit ARM with the dot-product instructions (sdot: signed by signed, exact).
#include "tiles.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

namespace native {
namespace {

struct Neon {
  static constexpr const char* kName = "neon";
  static constexpr int kTokens = 3, kGroups = 1;
  static constexpr int kDirectTokens = 3;
  static constexpr int kMaxDirectPacked = 3, kMaxDirectInt8 = 6;
  static constexpr int kQueries = 5, kColumns = 1;

  struct Words { int8x16_t v[4]; };
  struct Ints { int32x4_t v[4]; };
  struct Floats { float32x4_t v[4]; };
  using Levels = int8x16_t;

  static void prefetch(uintptr_t p) { __builtin_prefetch(reinterpret_cast<const char*>(p)); }
  static Levels levels(const int8_t* values) { return vld1q_s8(values); }
  static void unpack(const uint8_t* p, Levels levels, Words* pair) {
    for (int i = 0; i < 4; i++) {
      const uint8x16_t codes = vld1q_u8(p + 16 * i);
      pair[0].v[i] = vqtbl1q_s8(levels, vandq_u8(codes, vdupq_n_u8(15)));
      pair[1].v[i] = vqtbl1q_s8(levels, vshrq_n_u8(codes, 4));
    }
  }
  static Words load_words(const int8_t* p) {
    return {{vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48)}};
  }
  static void store_words(int8_t* p, const Words& words) {
    for (int i = 0; i < 4; i++) vst1q_s8(p + 16 * i, words.v[i]);
  }
  static int8x16_t spread(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }

  static Floats zero() {
    const float32x4_t z = vdupq_n_f32(0);
    return {{z, z, z, z}};
  }
  static Ints start(int32_t) {
    const int32x4_t z = vdupq_n_s32(0);
    return {{z, z, z, z}};
  }
  static Ints dot(Ints sum, const Words& words, int8x16_t x) {
    for (int i = 0; i < 4; i++) sum.v[i] = vdotq_s32(sum.v[i], words.v[i], x);
    return sum;
  }
  static Floats load_halves(const uint16_t* p) {
    Floats out;
    for (int i = 0; i < 4; i++) {
      out.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    }
    return out;
  }
  static Floats load_floats(const float* p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
  }
  static Floats load_bfloats(const uint16_t* p) {
    Floats out;
    for (int i = 0; i < 4; i++) {
      out.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    }
    return out;
  }
  static Floats splat(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {{v, v, v, v}};
  }
  static Floats fma(Floats sum, const Floats& a, const Floats& b) {
    for (int i = 0; i < 4; i++) sum.v[i] = vfmaq_f32(sum.v[i], a.v[i], b.v[i]);
    return sum;
  }
  static Floats add(Floats sum, const Ints& dots, float scale, const Floats& scales) {
    for (int i = 0; i < 4; i++) {
      sum.v[i] = vfmaq_f32(sum.v[i], vmulq_n_f32(vcvtq_f32_s32(dots.v[i]), scale), scales.v[i]);
    }
    return sum;
  }
  static void store(float* out, const Floats& sum, float unit) {
    for (int i = 0; i < 4; i++) vst1q_f32(out + 4 * i, vmulq_n_f32(sum.v[i], unit));
  }

  static Ints dot_block(const int8_t* w, const int8_t* x, int32_t) {
    Ints out;
    for (int i = 0; i < 4; i++) {
      out.v[i] = vdotq_s32(vdupq_n_s32(0), vld1q_s8(w + 16 * i), vld1q_s8(x + 16 * i));
    }
    return out;
  }
  static Floats add_block(Floats sum, const Ints& dots, float scale) {
    for (int i = 0; i < 4; i++) {
      sum.v[i] = vfmaq_n_f32(sum.v[i], vcvtq_f32_s32(dots.v[i]), scale);
    }
    return sum;
  }
  static float total(const Floats& sum) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(sum.v[0], sum.v[1]), vaddq_f32(sum.v[2], sum.v[3])));
  }
  static void transpose(const int8_t* p, int64_t stride, int8_t* wide) {
    for (int r = 0; r < 16; r++)
      for (int t = 0; t < 16; t++) std::memcpy(wide + t * 64 + r * 4, p + r * stride + t * 4, 4);
  }
};

}  // namespace

const Kernels* neon_kernels() { return table<Neon>(); }

}  // namespace native
#else
namespace native {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace native
#endif
