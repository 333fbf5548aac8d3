// AVX-512 with VNNI, for the files that are compiled with it. `Bias` is added to the codes of
// weights: vpdpbusd multiplies unsigned by signed bytes, so it wants code + 128, and every sum then
// starts at −128 · Σ activations, which is exact. Tiles multiply signed bytes and want 0.
#pragma once
#include <immintrin.h>

#include "tiles.h"

namespace native {
namespace {

template <int Bias>
struct Avx512 {
  static constexpr const char* kName = "avx512";
  static constexpr int kTokens = 6, kGroups = 2;
  static constexpr int kDirectTokens = 8;
  static constexpr int kMaxDirectPacked = 8, kMaxDirectInt8 = 8;
  static constexpr int kQueries = 5, kColumns = 4;

  using Words = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  using Levels = __m512i;

  static __m512i bias() { return _mm512_set1_epi8(char(Bias)); }

  static void prefetch(uintptr_t p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
  static Levels levels(const int8_t* values) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm512_xor_si512(_mm512_broadcast_i32x4(v), bias());
  }
  static void unpack(const uint8_t* p, Levels levels, Words* pair) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i codes = _mm512_loadu_si512(p);
    pair[0] = _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, nibble));
    pair[1] = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
  }
  static Words load_words(const int8_t* p) { return _mm512_loadu_si512(p); }
  static void store_words(int8_t* p, Words words) { _mm512_storeu_si512(p, words); }
  static __m512i spread(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }

  static Floats zero() { return _mm512_setzero_ps(); }
  static Ints start(int32_t offset) { return _mm512_set1_epi32(offset); }
  static Ints dot(Ints sum, Words words, __m512i x) { return _mm512_dpbusd_epi32(sum, words, x); }
  static Floats load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load_bfloats(const uint16_t* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static Floats splat(float x) { return _mm512_set1_ps(x); }
  static Floats fma(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
  static Floats add(Floats sum, Ints dots, float scale, Floats scales) {
    const Floats scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(scale));
    return _mm512_fmadd_ps(scaled, scales, sum);
  }
  static void store(float* out, Floats sum, float unit) {
    _mm512_storeu_ps(out, _mm512_mul_ps(sum, _mm512_set1_ps(unit)));
  }

  static Ints dot_block(const int8_t* w, const int8_t* x, int32_t offset) {
    const Ints start = _mm512_zextsi128_si512(_mm_cvtsi32_si128(offset));  // in one lane only
    const Words biased = _mm512_xor_si512(_mm512_loadu_si512(w), bias());
    return _mm512_dpbusd_epi32(start, biased, _mm512_loadu_si512(x));
  }
  static Floats add_block(Floats sum, Ints dots, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(scale), sum);
  }
  static float total(Floats sum) { return _mm512_reduce_add_ps(sum); }

  static void transpose(const int8_t* p, int64_t stride, int8_t* wide) {
    __m512i a[16], b[16];
    NATIVE_UNROLL for (int r = 0; r < 16; r++) {
      a[r] = _mm512_xor_si512(_mm512_loadu_si512(p + r * stride), bias());
    }
    NATIVE_UNROLL for (int i = 0; i < 8; i++) {  // pairs of rows, words of 4 codes
      b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
      b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    NATIVE_UNROLL for (int i = 0; i < 4; i++) {  // fours of rows
      a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
      a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
      a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
      a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    // a[4i+j] now holds in its lane L the rows 4i…4i+3 of word 4L+j: a 4 × 4 transpose of lanes.
    NATIVE_UNROLL for (int j = 0; j < 4; j++) {
      const __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);      // lanes 0 2 of rows 0-7
      const __m512i high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);     // lanes 1 3
      const __m512i low2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
      const __m512i high2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
      _mm512_storeu_si512(wide + j * 64, _mm512_shuffle_i32x4(low, low2, 0x88));
      _mm512_storeu_si512(wide + (4 + j) * 64, _mm512_shuffle_i32x4(high, high2, 0x88));
      _mm512_storeu_si512(wide + (8 + j) * 64, _mm512_shuffle_i32x4(low, low2, 0xdd));
      _mm512_storeu_si512(wide + (12 + j) * 64, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
  }
};

}  // namespace
}  // namespace native
