// AVX2: vpmaddubsw adds pairs of products into 16 bits. With |x| ≤ 127 as its unsigned operand and
// weights within ±127 carrying x's sign, a pair stays below 2 · 127² = 32,258 and cannot saturate.
#include "tiles.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

namespace native {
namespace {

struct Avx2 {
  static constexpr const char* kName = "avx2";
  static constexpr int kTokens = 2, kGroups = 1;
  static constexpr int kDirectTokens = 2;
  static constexpr int kMaxDirectPacked = 2, kMaxDirectInt8 = 4;
  static constexpr int kQueries = 5, kColumns = 1;

  struct Words { __m256i v[2]; };
  struct Ints { __m256i v[2]; };
  struct Floats { __m256 v[2]; };
  struct Spread { __m256i x, magnitude; };
  using Levels = __m256i;

  static __m256i load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static void prefetch(uintptr_t p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
  static Levels levels(const int8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static void unpack(const uint8_t* p, Levels levels, Words* pair) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; i++) {
      const __m256i codes = load(p + 32 * i);
      pair[0].v[i] = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, nibble));
      pair[1].v[i] =
          _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
    }
  }
  static Words load_words(const int8_t* p) { return {{load(p), load(p + 32)}}; }
  static void store_words(int8_t* p, const Words& words) {
    for (int i = 0; i < 2; i++) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32 * i), words.v[i]);
    }
  }
  static Spread spread(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    const __m256i v = _mm256_set1_epi32(four);
    return {v, _mm256_abs_epi8(v)};
  }

  static __m256i products(__m256i w, __m256i x, __m256i magnitude) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static Floats zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
  static Ints start(int32_t) { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static Ints dot(Ints sum, const Words& words, const Spread& x) {
    for (int i = 0; i < 2; i++) {
      sum.v[i] = _mm256_add_epi32(sum.v[i], products(words.v[i], x.x, x.magnitude));
    }
    return sum;
  }
  static Floats load_halves(const uint16_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {{_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))}};
  }
  static Floats load_floats(const float* p) {
    return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}};
  }
  static Floats load_bfloats(const uint16_t* p) {
    Floats out;
    for (int i = 0; i < 2; i++) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i));
      out.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    return out;
  }
  static Floats splat(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
  static Floats fma(Floats sum, const Floats& a, const Floats& b) {
    for (int i = 0; i < 2; i++) sum.v[i] = _mm256_fmadd_ps(a.v[i], b.v[i], sum.v[i]);
    return sum;
  }
  static Floats add(Floats sum, const Ints& dots, float scale, const Floats& scales) {
    for (int i = 0; i < 2; i++) {
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots.v[i]), _mm256_set1_ps(scale));
      sum.v[i] = _mm256_fmadd_ps(scaled, scales.v[i], sum.v[i]);
    }
    return sum;
  }
  static void store(float* out, const Floats& sum, float unit) {
    for (int i = 0; i < 2; i++) {
      _mm256_storeu_ps(out + 8 * i, _mm256_mul_ps(sum.v[i], _mm256_set1_ps(unit)));
    }
  }

  static Ints dot_block(const int8_t* w, const int8_t* x, int32_t) {
    Ints out;
    for (int i = 0; i < 2; i++) {
      const __m256i codes = load(x + 32 * i);
      out.v[i] = products(load(w + 32 * i), codes, _mm256_abs_epi8(codes));
    }
    return out;
  }
  static Floats add_block(Floats sum, const Ints& dots, float scale) {
    for (int i = 0; i < 2; i++) {
      sum.v[i] =
          _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots.v[i]), _mm256_set1_ps(scale), sum.v[i]);
    }
    return sum;
  }
  static float total(const Floats& sum) {
    float lanes[8], out = 0;
    _mm256_storeu_ps(lanes, _mm256_add_ps(sum.v[0], sum.v[1]));
    for (float lane : lanes) out += lane;
    return out;
  }
  static void transpose(const int8_t* p, int64_t stride, int8_t* wide) {
    for (int r = 0; r < 16; r++)
      for (int t = 0; t < 16; t++) std::memcpy(wide + t * 64 + r * 4, p + r * stride + t * 4, 4);
  }
};

}  // namespace

const Kernels* avx2_kernels() { return table<Avx2>(); }

}  // namespace native
#else
namespace native {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace native
#endif
