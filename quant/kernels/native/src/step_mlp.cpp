// The MLP half of a block: the router beside the shared experts, the routed ones, their sum.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "step_job.h"

namespace native {
namespace {

// One block of silu(gate(x)) · up(x), quantized. `rounded` as the layers in Python store it when
// gate, up and their product are tensors of their own; within a routed expert they are not.
void gate_block(StepJob& job, const Expert& expert, int64_t block, const Activations& to,
                int64_t at, bool rounded, const StepScratch& scratch) {
  const int64_t width = expert.down.num_cols, first = block * kFeatures;
  const int64_t features = chunk_length(block, kFeatures, width);
  float *gate = scratch.gate, *up = scratch.up;
  job.multiply(expert.gate_up, first, features, job.inputs, 0, gate);
  job.multiply(expert.gate_up, width + first, features, job.inputs, 0, up);
  if (rounded && job.bf16) {
    float* ones = scratch.sums;
    for (int64_t i = 0; i < features; i++) ones[i] = 1.0f;
    job.round(gate, features);
    job.round(up, features);
    job.kernels.swiglu(gate, ones, features, gate);
    job.round(gate, features);
    for (int64_t i = 0; i < features; i++) gate[i] *= up[i];
    job.round(gate, features);
  } else {
    job.kernels.swiglu(gate, up, features, gate);
  }
  const int64_t b = at * to.num_blocks + block;
  if (!job.kernels.quantize(gate, features, job.split, to.codes + b * kBlock, to.scales + b,
                            to.offsets + b)) {
    job.finite = false;
  }
}

void softmax(float* x, int64_t n) {
  float largest = x[0], sum = 0;
  for (int64_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
  for (int64_t i = 0; i < n; i++) sum += x[i] = std::exp(x[i] - largest);
  for (int64_t i = 0; i < n; i++) x[i] /= sum;
}

// Takes the expert with the largest biased probability, of equals the first.
int64_t take_best(const StepJob& job) {
  int64_t best = 0;
  for (int64_t e = 1; e < job.step.num_experts; e++) {
    if (job.biased[e] > job.biased[best]) best = e;
  }
  job.biased[best] = -std::numeric_limits<float>::infinity();
  return best;
}

void sort_by_id(const StepJob& job) {
  std::sort(job.chosen, job.chosen + job.step.num_experts_per_tok,
            [](const Chosen& a, const Chosen& b) { return a.id < b.id; });
}

// Ends the token here, and says what it wants.
void stop(StepJob& job, int64_t layer_idx) {
  job.is_here = false;
  job.step.wanted[0] = layer_idx;
  for (int64_t i = 0; i < job.step.num_experts_per_tok; i++) {
    job.step.wanted[1 + i] = job.chosen[i].id;
  }
  job.pool.end_early();
}

}  // namespace

void router_chunk(void* context, int64_t chunk, int thread) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  const Step& step = job.step;
  if (chunk >= stage.num_router_chunks) {
    gate_block(job, *stage.layer->shared, chunk - stage.num_router_chunks, job.shared_width, 0,
               true, job.scratch[thread]);
    return;
  }
  const int64_t first = chunk * kRouterRows;
  const int64_t rows = chunk_length(chunk, kRouterRows, step.num_experts);
  for (int64_t e = first; e < first + rows; e++) {
    const float* row = stage.layer->router + e * step.hidden_size;
    job.router_logits[e] = job.kernels.dot(job.normed, row, step.hidden_size);
  }
}

// Source: transformers, Ernie4_5_MoeTopKRouter. All in float32: the correction bias is a large
// constant whose differences between experts are as small as the probabilities'.
void after_router(void* context) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  const Step& step = job.step;
  const int64_t num_chosen = step.num_experts_per_tok;
  softmax(job.router_logits, step.num_experts);
  for (int64_t e = 0; e < step.num_experts; e++) {
    job.biased[e] = job.router_logits[e] + stage.layer->correction_bias[e];
  }
  float total = 0;
  for (int64_t i = 0; i < num_chosen; i++) {
    const int64_t e = take_best(job);
    job.chosen[i] = {e, job.router_logits[e], stage.layer->experts[e]};
    if (stage.layer_idx != step.begin_layer) stage.layer->counts[e]++;
    total += job.router_logits[e];
  }
  total = total > step.norm_min ? total : step.norm_min;
  for (int64_t i = 0; i < num_chosen; i++) {
    job.chosen[i].weight /= total;
    job.round(&job.chosen[i].weight, 1);
  }
  sort_by_id(job);
  for (int64_t i = 0; i < num_chosen; i++) {
    if (!job.chosen[i].expert) return stop(job, stage.layer_idx);
  }
}

void routed_chunk(void* context, int64_t chunk, int thread) {
  StepJob& job = *static_cast<StepStage*>(context)->job;
  const int64_t blocks = job.routed_width.num_blocks;
  const int64_t at = chunk / blocks;
  gate_block(job, *job.chosen[at].expert, chunk % blocks, job.routed_width, at, false,
             job.scratch[thread]);
}

void down_chunk(void* context, int64_t chunk, int thread) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  const Step& step = job.step;
  const int64_t first = chunk * job.o_rows;
  const int64_t rows = chunk_length(chunk, job.o_rows, step.hidden_size);
  float *out = job.scratch[thread].gate, *sums = job.scratch[thread].sums;
  std::memset(sums, 0, kFeatures * sizeof(float));
  if (stage.layer->router) {
    for (int64_t i = 0; i < step.num_experts_per_tok; i++) {
      job.multiply(job.chosen[i].expert->down, first, rows, job.routed_width, i, out);
      job.kernels.add_scaled(out, job.chosen[i].weight, rows, sums);
    }
    job.round(sums, rows);
  }
  if (stage.layer->shared) {
    job.multiply(stage.layer->shared->down, first, rows, job.shared_width, 0, out);
    job.round(out, rows);
    for (int64_t r = 0; r < rows; r++) sums[r] += out[r];
    job.round(sums, rows);
  }
  for (int64_t r = 0; r < rows; r++) job.hidden[first + r] += sums[r];
  job.round(job.hidden + first, rows);
}

void after_down(void* context) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  if (stage.layer_idx + 1 < job.step.num_layers) {
    job.norm(stage.layer[1].input_norm, job.split);
  } else {
    job.norm(job.step.norm, job.step.head.kind == kCodebook);
  }
}

}  // namespace native
