// Attention of many tokens, written once over an instruction set: blocks of keys one after the
// other, with running maxima, so that memory does not grow with the context.
//
// Rows are (query head, token) pairs that share a key head. Scores are kept transposed,
// [key, row], which makes the softmax a loop over rows side by side.
#pragma once
#include "decoding.h"

namespace native {
namespace {

// C[M, W · 16] (+)= Σ_k A(m, k) · B[k, …]; the tile of A is read at m · row_step + k · step.
template <class Isa, int M, int W>
inline void multiply_tile(const float* a, int64_t row_step, int64_t step, const float* b,
                          int64_t ldb, int64_t depth, float* c, int64_t ldc, bool add) {
  typename Isa::Floats sums[M][W];
  NATIVE_UNROLL for (int m = 0; m < M; m++) {
    NATIVE_UNROLL for (int w = 0; w < W; w++) {
      sums[m][w] = add ? Isa::load_floats(c + m * ldc + w * kLanes) : Isa::zero();
    }
  }
  for (int64_t k = 0; k < depth; k++) {
    typename Isa::Floats row[W];
    NATIVE_UNROLL for (int w = 0; w < W; w++) row[w] = Isa::load_floats(b + k * ldb + w * kLanes);
    NATIVE_UNROLL for (int m = 0; m < M; m++) {
      const auto x = Isa::splat(a[m * row_step + k * step]);
      NATIVE_UNROLL for (int w = 0; w < W; w++) sums[m][w] = Isa::fma(sums[m][w], x, row[w]);
    }
  }
  NATIVE_UNROLL for (int m = 0; m < M; m++) {
    NATIVE_UNROLL for (int w = 0; w < W; w++) {
      Isa::store(c + m * ldc + w * kLanes, sums[m][w], 1.0f);
    }
  }
}

template <class Isa>
void multiply(const float* a, int64_t row_step, int64_t step, const float* b, int64_t ldb,
              int64_t depth, float* c, int64_t ldc, int64_t rows, int64_t cols, bool add) {
  for (int64_t n = 0; n < cols;) {
    n += kLanes * largest_tile<Isa::kColumns>((cols - n) / kLanes, [&](auto width) {
      for (int64_t m = 0; m < rows;) {
        m += largest_tile<Isa::kQueries>(rows - m, [&](auto count) {
          multiply_tile<Isa, decltype(count)::value, decltype(width)::value>(
              a + m * row_step, row_step, step, b + n, ldb, depth, c + m * ldc + n, ldc, add);
        });
      }
    });
  }
}

// Rows of keys or values as float32 [n, ld], with zeros behind the last column.
void widen_rows(const void* rows, int32_t dtype, int64_t head_dim, int64_t n, int64_t ld,
                float* out) {
  for (int64_t i = 0; i < n; i++) {
    if (dtype == kBFloat16) {
      widen(static_cast<const uint16_t*>(rows) + i * head_dim, head_dim, out + i * ld);
    } else {
      std::memcpy(out + i * ld, static_cast<const float*>(rows) + i * head_dim,
                  size_t(head_dim) * sizeof(float));
    }
    for (int64_t j = head_dim; j < ld; j++) out[i * ld + j] = 0.0f;
  }
}

// Queries, scaled, as columns: out [ld, num_rows], with zeros in the columns behind the last row.
void place_queries(const ManyQueries& q, const AttentionScratch& scratch) {
  const int64_t ld = scratch.ld, num_rows = scratch.num_rows;
  const float factor = 1.0f / std::sqrt(float(q.head_dim));
  float* staged = scratch.keys;  // kKeys rows fit; kLanes are used
  for (int64_t first = 0; first < num_rows; first += kLanes) {
    std::memset(staged, 0, size_t(kLanes * ld) * sizeof(float));
    for (int64_t r = first; r < first + kLanes && r < q.num_heads * q.num_tokens; r++) {
      const int64_t at = r / q.num_tokens * q.head_step + r % q.num_tokens * q.head_dim;
      const size_t nbytes = q.dtype == kBFloat16 ? 2 : 4;
      widen_rows(static_cast<const char*>(q.queries) + size_t(at) * nbytes, q.dtype, q.head_dim, 1,
                 ld, staged + (r - first) * ld);
    }
    for (int64_t i = 0; i < ld; i++) {
      float* to = scratch.queries + i * num_rows + first;
      for (int r = 0; r < kLanes; r++) to[r] = staged[r * ld + i] * factor;
    }
  }
}

// Hides the keys behind each row's token. A score of −10³⁰ leaves a weight of nothing.
void hide_later(const ManyQueries& q, int64_t first_key, int64_t keys,
                const AttentionScratch& scratch) {
  for (int64_t key = 0; key < keys; key++) {
    const int64_t hidden = first_key + key - q.first_position;  // tokens before it do not see it
    if (hidden <= 0) continue;
    for (int64_t head = 0; head < q.num_heads; head++) {
      float* scores = scratch.scores + key * scratch.num_rows + head * q.num_tokens;
      for (int64_t i = 0; i < hidden && i < q.num_tokens; i++) scores[i] = -1e30f;
    }
  }
}

// Scores to weights, and what was summed before to the new maxima. False if a score is not finite.
bool weigh_scores(int64_t keys, const AttentionScratch& scratch) {
  const int64_t num_rows = scratch.num_rows;
  uint32_t worst = 0;
  for (int64_t first = 0; first < num_rows; first += kLanes) {
    float tops[kLanes], sums[kLanes] = {};
    uint32_t largest[kLanes] = {};
    std::memcpy(tops, scratch.largest + first, sizeof tops);
    for (int64_t key = 0; key < keys; key++) {
      const float* scores = scratch.scores + key * num_rows + first;
      for (int r = 0; r < kLanes; r++) {
        const uint32_t magnitude = bits_of(scores[r]) & 0x7fffffffu;
        largest[r] = magnitude > largest[r] ? magnitude : largest[r];
        tops[r] = scores[r] > tops[r] ? scores[r] : tops[r];
      }
    }
    for (uint32_t each : largest) worst = each > worst ? each : worst;
    for (int64_t key = 0; key < keys; key++) {
      float* scores = scratch.scores + key * num_rows + first;
      for (int r = 0; r < kLanes; r++) {
        scores[r] = exp_approx(scores[r] - tops[r]);
        sums[r] += scores[r];
      }
    }
    for (int r = 0; r < kLanes; r++) {
      const float factor = exp_approx(scratch.largest[first + r] - tops[r]);
      scratch.factors[first + r] = factor;
      scratch.sums[first + r] = scratch.sums[first + r] * factor + sums[r];
      scratch.largest[first + r] = tops[r];
    }
  }
  return worst < 0x7f800000u;
}

void rescale(const AttentionScratch& scratch) {
  for (int64_t row = 0; row < scratch.num_rows; row++) {
    if (scratch.factors[row] == 1.0f) continue;
    float* out = scratch.out + row * scratch.ld;
    for (int64_t i = 0; i < scratch.ld; i++) out[i] *= scratch.factors[row];
  }
}

template <class Isa>
bool attend_many(const ManyQueries& q, const AttentionScratch& scratch) {
  const int64_t ld = scratch.ld, num_rows = scratch.num_rows;
  const size_t row_nbytes = size_t(q.head_dim) * (q.dtype == kBFloat16 ? 2 : 4);
  place_queries(q, scratch);
  std::memset(scratch.out, 0, size_t(num_rows * ld) * sizeof(float));
  for (int64_t row = 0; row < num_rows; row++) {
    scratch.largest[row] = -1e30f;
    scratch.sums[row] = 0;
  }
  bool finite = true;
  const int64_t num_keys = q.first_position + q.num_tokens;
  for (int64_t first = 0; first < num_keys; first += kKeys) {
    const int64_t keys = num_keys - first < kKeys ? num_keys - first : kKeys;
    const size_t skipped = size_t(first) * row_nbytes;
    widen_rows(static_cast<const char*>(q.keys) + skipped, q.dtype, q.head_dim, keys, ld,
               scratch.keys);
    multiply<Isa>(scratch.keys, ld, 1, scratch.queries, num_rows, ld, scratch.scores, num_rows,
                  keys, num_rows, false);
    if (first + keys - 1 > q.first_position) hide_later(q, first, keys, scratch);
    if (!weigh_scores(keys, scratch)) finite = false;
    rescale(scratch);
    widen_rows(static_cast<const char*>(q.values) + skipped, q.dtype, q.head_dim, keys, ld,
               scratch.keys);
    multiply<Isa>(scratch.scores, 1, num_rows, scratch.keys, ld, keys, scratch.out, ld, num_rows,
                  ld, true);
  }
  for (int64_t row = 0; row < num_rows; row++) {
    const float share = 1.0f / scratch.sums[row];
    for (int64_t i = 0; i < ld; i++) scratch.out[row * ld + i] *= share;
  }
  return finite;
}

}  // namespace
}  // namespace native
