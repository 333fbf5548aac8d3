// The attention half of a block: queries, keys and values; scores; the output projection.
#include <cmath>
#include <cstring>

#include "step_job.h"

namespace native {
namespace {

// Where a layer's keys (0) or values (1) of one head begin in the cache, in elements.
int64_t cache_begin(const Step& step, int64_t part, int64_t layer_idx, int64_t kv_head) {
  const int64_t head = (part * step.num_layers + layer_idx) * step.num_kv_heads + kv_head;
  return head * step.capacity * step.head_dim;
}

const void* cache_at(const Step& step, int64_t element) {
  const size_t nbytes = step.dtype == kFloat32 ? 4 : 2;
  return static_cast<const char*>(step.kv_cache) + size_t(element) * nbytes;
}

// Turns the pair of rows 2i and 2i + 1 of a head, if it is a query's or a key's.
void rotate_pair(const StepJob& job, int64_t row, float* pair) {
  const Step& step = job.step;
  if (row / step.head_dim >= step.num_heads + step.num_kv_heads) return;
  const int64_t i = row % step.head_dim / 2;
  const float even = pair[0], odd = pair[1];
  pair[0] = even * job.cos[i] - odd * job.sin[i];
  pair[1] = odd * job.cos[i] + even * job.sin[i];
}

// Queries stay here, keys and values go to their place in the cache. No piece crosses heads.
void place(const StepStage& stage, int64_t row, int64_t n, const float* x) {
  const StepJob& job = *stage.job;
  const Step& step = job.step;
  const int64_t head = row / step.head_dim, column = row % step.head_dim;
  if (head < step.num_heads) {
    std::memcpy(job.queries + row, x, size_t(n) * sizeof(float));
    return;
  }
  const int64_t kv_head = head - step.num_heads;
  const int64_t part = kv_head / step.num_kv_heads;
  const int64_t begin = cache_begin(step, part, stage.layer_idx, kv_head % step.num_kv_heads);
  store_row(job.kernels, x, n, step.kv_cache, step.dtype,
            begin + step.position * step.head_dim + column);
}

}  // namespace

void qkv_chunk(void* context, int64_t chunk, int thread) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  const Matrix& weight = stage.layer->qkv;
  const int64_t first = chunk * job.qkv_rows;
  const int64_t rows = chunk_length(chunk, job.qkv_rows, weight.num_rows);
  float* out = job.scratch[thread].gate;
  job.multiply(weight, first, rows, job.inputs, 0, out);
  job.round(out, rows);
  for (int64_t r = 0; r < rows; r += 2) rotate_pair(job, first + r, out + r);
  job.round(out, rows);
  for (int64_t r = 0; r < rows; r++) {
    if (!std::isfinite(out[r])) job.finite = false;  // a softmax would hide it
  }
  const int64_t head_dim = job.step.head_dim;
  for (int64_t r = 0; r < rows;) {
    const int64_t rest = head_dim - (first + r) % head_dim;
    const int64_t n = rows - r < rest ? rows - r : rest;
    place(stage, first + r, n, out + r);
    r += n;
  }
}

// A chunk is some positions of one key and value head.
void attend_chunk(void* context, int64_t chunk, int thread) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  const Step& step = job.step;
  const StepScratch& scratch = job.scratch[thread];
  const int64_t kv_head = chunk % step.num_kv_heads, split = chunk / step.num_kv_heads;
  const int64_t num_queries = step.num_heads / step.num_kv_heads;
  const int64_t first_head = kv_head * num_queries;
  const float scale = 1.0f / std::sqrt(float(step.head_dim));
  for (int64_t query = 0; query < num_queries; query++) {
    const float* from = job.queries + (first_head + query) * step.head_dim;
    float* to = scratch.queries + query * job.head_ld;
    for (int64_t i = 0; i < job.head_ld; i++) to[i] = i < step.head_dim ? from[i] * scale : 0.0f;
  }
  const int64_t skipped = split * job.split_positions * step.head_dim;
  const int64_t row = split * step.num_heads + first_head;
  const int64_t keys = cache_begin(step, 0, stage.layer_idx, kv_head) + skipped;
  const int64_t values = cache_begin(step, 1, stage.layer_idx, kv_head) + skipped;
  job.kernels.attend({cache_at(step, keys), cache_at(step, values), step.dtype,
                      chunk_length(split, job.split_positions, job.num_held), step.head_dim,
                      job.head_ld, num_queries, scratch.queries, scratch.scores,
                      job.partial + row * job.head_ld, job.partial_largest + row,
                      job.partial_sums + row});
}

// A chunk is one query head.
void combine_chunk(void* context, int64_t head, int thread) {
  StepJob& job = *static_cast<StepStage*>(context)->job;
  const Step& step = job.step;
  float* out = job.scratch[thread].out;
  float largest = job.partial_largest[head], total = 0;
  for (int64_t split = 1; split < job.num_splits; split++) {
    const float here = job.partial_largest[split * step.num_heads + head];
    largest = here > largest ? here : largest;
  }
  std::memset(out, 0, size_t(job.head_ld) * sizeof(float));
  for (int64_t split = 0; split < job.num_splits; split++) {
    const int64_t row = split * step.num_heads + head;
    const float weight = std::exp(job.partial_largest[row] - largest);
    total += job.partial_sums[row] * weight;
    job.kernels.add_scaled(job.partial + row * job.head_ld, weight, job.head_ld, out);
  }
  float* to = job.attended + head * step.head_dim;
  for (int64_t i = 0; i < step.head_dim; i++) to[i] = out[i] / total;
  job.round(to, step.head_dim);
}

void after_attention(void* context) {
  StepJob& job = *static_cast<StepStage*>(context)->job;
  job.quantize(job.attended, job.attended_inputs, job.split);
}

void o_chunk(void* context, int64_t chunk, int thread) {
  const auto& stage = *static_cast<StepStage*>(context);
  StepJob& job = *stage.job;
  const int64_t first = chunk * job.o_rows;
  const int64_t rows = chunk_length(chunk, job.o_rows, job.step.hidden_size);
  float* out = job.scratch[thread].gate;
  job.multiply(stage.layer->o, first, rows, job.attended_inputs, 0, out);
  job.round(out, rows);
  for (int64_t r = 0; r < rows; r++) job.hidden[first + r] += out[r];
  job.round(job.hidden + first, rows);
}

void after_o(void* context) {
  const auto& stage = *static_cast<StepStage*>(context);
  stage.job->norm(stage.layer->post_norm, stage.job->split);
}

}  // namespace native
