// What a decoded token needs between products, written once over an instruction set: norm, router,
// attention. Sums run in an order that depends on lengths alone.
#pragma once
#include <cmath>

#include "elementwise.h"
#include "native.h"

namespace native {
namespace {

#define NATIVE_UNROLL _Pragma("GCC unroll 16")

constexpr int kLanes = 16;

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls run(Count<tile>) for the largest tile ≤ Most that n fills; returns that tile.
template <int Most, class Run>
inline int64_t largest_tile(int64_t n, Run&& run) {
  if constexpr (Most > 1) {
    if (n < Most) return largest_tile<Most - 1>(n, run);
  }
  run(Count<Most>{});
  return Most;
}

// The bfloat16 nearest a float, as a float; NaN stays NaN.
inline float nearest_bf16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return float_of((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : rounded);
}

void round_bf16(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = nearest_bf16(x[i]);
}

template <class Isa>
float dot(const float* x, const float* y, int64_t n) {
  constexpr int kChains = 4;  // additions in flight
  typename Isa::Floats sums[kChains];
  NATIVE_UNROLL for (int chain = 0; chain < kChains; chain++) sums[chain] = Isa::zero();
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    NATIVE_UNROLL for (int chain = 0; chain < kChains; chain++) {
      const int64_t at = i + chain * kLanes;
      sums[chain] = Isa::fma(sums[chain], Isa::load_floats(x + at), Isa::load_floats(y + at));
    }
  }
  float sum = 0;
  for (const auto& chain : sums) sum += Isa::total(chain);
  for (; i < n; i++) sum += x[i] * y[i];
  return sum;
}

// Source: transformers, Ernie4_5RMSNorm: rounded before the weight, and after.
template <class Isa>
void rms_norm(const float* x, const float* weight, float eps, int64_t n, bool bf16, float* out) {
  const float scale = 1.0f / std::sqrt(dot<Isa>(x, x, n) / float(n) + eps);
  if (bf16) {
    for (int64_t i = 0; i < n; i++) out[i] = nearest_bf16(nearest_bf16(x[i] * scale) * weight[i]);
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
  }
}

// 16 columns of a key or value, with zeros behind the last.
template <class Isa, bool kBf16>
inline typename Isa::Floats load_columns(const void* rows, int64_t head_dim, int64_t position,
                                         int64_t column) {
  const int64_t at = position * head_dim + column, rest = head_dim - column;
  const auto* floats = static_cast<const float*>(rows);
  const auto* bf16 = static_cast<const uint16_t*>(rows);
  if (rest < kLanes) {
    float tail[kLanes] = {};
    for (int64_t i = 0; i < rest; i++) {
      tail[i] = kBf16 ? float_of(uint32_t(bf16[at + i]) << 16) : floats[at + i];
    }
    return Isa::load_floats(tail);
  }
  if constexpr (kBf16) {
    return Isa::load_bfloats(bf16 + at);
  } else {
    return Isa::load_floats(floats + at);
  }
}

// Scores of N queries, the first at `query`.
template <class Isa, bool kBf16, int N>
inline void score(const Attention& a, int64_t query) {
  const float* queries = a.queries + query * a.ld;
  float* scores = a.scores + query * a.num_positions;
  for (int64_t position = 0; position < a.num_positions; position++) {
    typename Isa::Floats sums[N];
    NATIVE_UNROLL for (int n = 0; n < N; n++) sums[n] = Isa::zero();
    for (int64_t i = 0; i < a.ld; i += kLanes) {
      const auto key = load_columns<Isa, kBf16>(a.keys, a.head_dim, position, i);
      NATIVE_UNROLL for (int n = 0; n < N; n++) {
        sums[n] = Isa::fma(sums[n], Isa::load_floats(queries + n * a.ld + i), key);
      }
    }
    NATIVE_UNROLL for (int n = 0; n < N; n++) {
      scores[n * a.num_positions + position] = Isa::total(sums[n]);
    }
  }
}

// Σ weight · value of N queries in W · 16 columns, the first at `column`.
template <class Isa, bool kBf16, int N, int W>
inline void weigh(const Attention& a, int64_t query, int64_t column) {
  const float* weights = a.scores + query * a.num_positions;
  typename Isa::Floats sums[N][W];
  NATIVE_UNROLL for (int n = 0; n < N; n++) {
    NATIVE_UNROLL for (int w = 0; w < W; w++) sums[n][w] = Isa::zero();
  }
  for (int64_t position = 0; position < a.num_positions; position++) {
    typename Isa::Floats value[W];
    NATIVE_UNROLL for (int w = 0; w < W; w++) {
      value[w] = load_columns<Isa, kBf16>(a.values, a.head_dim, position, column + w * kLanes);
    }
    NATIVE_UNROLL for (int n = 0; n < N; n++) {
      const auto weight = Isa::splat(weights[n * a.num_positions + position]);
      NATIVE_UNROLL for (int w = 0; w < W; w++) {
        sums[n][w] = Isa::fma(sums[n][w], weight, value[w]);
      }
    }
  }
  NATIVE_UNROLL for (int n = 0; n < N; n++) {
    NATIVE_UNROLL for (int w = 0; w < W; w++) {
      Isa::store(a.out + (query + n) * a.ld + column + w * kLanes, sums[n][w], 1.0f);
    }
  }
}

// Scores to e^(score − largest), with 16 comparisons and additions in flight.
inline void exponentiate(const Attention& a, int64_t query) {
  float* scores = a.scores + query * a.num_positions;
  float tops[kLanes], sums[kLanes] = {};
  for (float& top : tops) top = scores[0];
  const int64_t n = a.num_positions, whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; j++) tops[j] = scores[i + j] > tops[j] ? scores[i + j] : tops[j];
  }
  for (int64_t i = whole; i < n; i++) tops[0] = scores[i] > tops[0] ? scores[i] : tops[0];
  float largest = tops[0], sum = 0;
  for (float top : tops) largest = top > largest ? top : largest;
  for (int64_t i = 0; i < n; i++) scores[i] = exp_approx(scores[i] - largest);
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; j++) sums[j] += scores[i + j];
  }
  for (float part : sums) sum += part;
  for (int64_t i = whole; i < n; i++) sum += scores[i];
  a.largest[query] = largest;
  a.sums[query] = sum;
}

template <class Isa, bool kBf16>
void attend_in(const Attention& a) {
  for (int64_t query = 0; query < a.num_queries;) {
    query += largest_tile<Isa::kQueries>(a.num_queries - query, [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      score<Isa, kBf16, kCount>(a, query);
      for (int n = 0; n < kCount; n++) exponentiate(a, query + n);
      for (int64_t column = 0; column < a.ld;) {
        const int64_t vectors = (a.ld - column) / kLanes;
        column += kLanes * largest_tile<Isa::kColumns>(vectors, [&](auto width) {
          weigh<Isa, kBf16, kCount, decltype(width)::value>(a, query, column);
        });
      }
    });
  }
}

template <class Isa>
void attend(const Attention& a) {
  a.dtype == kBFloat16 ? attend_in<Isa, true>(a) : attend_in<Isa, false>(a);
}

}  // namespace
}  // namespace native
