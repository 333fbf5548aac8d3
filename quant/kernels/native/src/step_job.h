// What the stages of one decoded token share; step.cpp says how they follow each other.
//
// Activations are float32 in here. With dtype bfloat16 they are rounded wherever the layers in
// Python would store them, so that both give one result up to the order of sums.
#pragma once
#include <atomic>
#include <vector>

#include "jobs.h"

namespace native {

constexpr int64_t kFeatures = 64;  // of a gated MLP in a chunk: one block to quantize
constexpr int64_t kRouterRows = 4;
// Attention is split by positions alike for every number of threads: results must not depend on it.
constexpr int64_t kLeastPositions = 64, kMostSplits = 64;

// A routed expert of the current layer, in ascending order of ids as run_layer sums them.
struct Chosen {
  int64_t id;
  float weight;
  const Expert* expert;
};

struct StepScratch {
  float* gate;    // [kFeatures]; also results of products
  float* up;      // [kFeatures]
  float* sums;    // [kFeatures]
  float* queries; // [queries per head, head_ld]
  float* scores;  // [queries per head, positions of a split]
  float* out;     // [queries per head, head_ld]
};

struct StepJob {
  const Kernels& kernels;
  const Step& step;
  Pool& pool;
  bool bf16;
  bool split;      // the order of codes that the linear maps want
  int64_t num_held, split_positions, num_splits, head_ld;
  int64_t o_rows, qkv_rows, head_rows;  // in a chunk

  float* hidden;  // [hidden_size], the residual stream
  float* normed;  // [hidden_size]
  float* cos;     // [head_dim / 2]
  float* sin;
  float* queries;         // [num_heads · head_dim], rotated
  float* attended;        // [num_heads · head_dim]
  float* partial;         // [num_splits, num_heads, head_ld]
  float* partial_largest; // [num_splits, num_heads]
  float* partial_sums;
  float* router_logits;   // [num_experts]; then their softmax
  float* biased;          // [num_experts]
  Chosen* chosen;         // [num_experts_per_tok]
  Activations inputs;          // the normed hidden states
  Activations attended_inputs; // of the output projection
  Activations shared_width;    // of the shared experts or of a dense MLP
  Activations routed_width;    // one row a chosen expert
  std::atomic<bool> finite{true};
  bool is_here = true;  // all that was chosen; else the token stops
  StepScratch scratch[kMaxThreads];

  void round(float* x, int64_t n) const {
    if (bf16) kernels.round_bf16(x, n);
  }
  void quantize(const float* x, const Activations& to, bool split_codes) {
    if (!to.quantize(kernels, x, 0, split_codes)) finite = false;
  }
  void norm(const float* weight, bool split_codes) {
    kernels.rms_norm(hidden, weight, step.eps, step.hidden_size, bf16, normed);
    quantize(normed, inputs, split_codes);
  }
  void multiply(const Matrix& weight, int64_t first, int64_t rows, const Activations& from,
                int64_t at, float* out) const {
    const Token token = from.token(at);
    multiply_rows(kernels, weight, first, rows, &token, 1, out, kFeatures, {});
  }
};

// One layer as the stages see it.
struct StepStage {
  StepJob* job;
  const StepLayer* layer;
  int64_t layer_idx;
  int64_t num_router_chunks;
};

inline int64_t chunks_of(int64_t n, int64_t step) { return (n + step - 1) / step; }
inline int64_t chunk_length(int64_t chunk, int64_t step, int64_t n) {
  return n - chunk * step < step ? n - chunk * step : step;
}

// Stages: bodies of phases, and what follows on the thread that ends one.
void qkv_chunk(void* stage, int64_t chunk, int thread);
void attend_chunk(void* stage, int64_t chunk, int thread);
void combine_chunk(void* stage, int64_t chunk, int thread);
void after_attention(void* stage);
void o_chunk(void* stage, int64_t chunk, int thread);
void after_o(void* stage);

void router_chunk(void* stage, int64_t chunk, int thread);  // and the gates of shared experts
void after_router(void* stage);
void routed_chunk(void* stage, int64_t chunk, int thread);
void down_chunk(void* stage, int64_t chunk, int thread);
void after_down(void* stage);

}  // namespace native
