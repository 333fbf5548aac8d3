// One decoded token through the whole model, in one parallel region. The phases of a block:
//
//   qkv · attention · its parts combined · o · router and shared gates · routed gates · down
//
// What is too little for many threads (norms, quantizing, the choice of experts) is done by the
// thread that ends the phase before, while the others wait at its barrier anyway.
//
// Where an expert is chosen that is not in memory the token stops, and a later call goes on: from
// the residual stream before that block's MLP, whose router chooses the same again.
#include <cmath>
#include <cstring>
#include <new>

#include "step_job.h"

namespace native {
namespace {

void head_chunk(void* context, int64_t chunk, int thread) {
  StepJob& job = *static_cast<StepStage*>(context)->job;
  const Matrix& head = job.step.head;
  const int64_t first = chunk * job.head_rows;
  const int64_t rows = chunk_length(chunk, job.head_rows, head.num_rows);
  float* out = job.scratch[thread].gate;
  job.multiply(head, first, rows, job.inputs, 0, out);
  job.round(out, rows);
  store_row(job.kernels, out, rows, job.step.logits, kFloat32, first);
}

void embed(StepJob& job) {
  const Step& step = job.step;
  const int64_t n = step.hidden_size, begin = step.token_id * n;
  if (step.embedding_absmax) {
    const auto* codes = static_cast<const int8_t*>(step.embedding) + begin;
    const float scale = step.embedding_absmax[step.token_id] / 127.0f;
    for (int64_t i = 0; i < n; i++) job.hidden[i] = float(codes[i]) * scale;
  } else {
    job.kernels.widen(static_cast<const uint16_t*>(step.embedding) + begin, n, job.hidden);
  }
  job.round(job.hidden, n);
}

void find_angles(StepJob& job) {
  for (int64_t i = 0; i < job.step.head_dim / 2; i++) {
    const float angle = float(job.step.position) * job.step.inverse_frequencies[i];
    job.cos[i] = float(std::cos(double(angle)));
    job.sin[i] = float(std::sin(double(angle)));
  }
}

void plan(StepJob& job, int num_threads) {
  const Step& step = job.step;
  job.bf16 = step.dtype == kBFloat16;
  job.split = step.layers[0].qkv.kind == kCodebook;
  job.num_held = step.position + 1;
  const int64_t fair = chunks_of(job.num_held, kMostSplits);
  job.split_positions = round_up(fair, kLeastPositions);
  job.num_splits = chunks_of(job.num_held, job.split_positions);
  job.head_ld = round_up(step.head_dim, kGroup);
  job.qkv_rows = chunk_rows(step.layers[0].qkv.num_rows, 1, num_threads);
  job.o_rows = chunk_rows(step.hidden_size, 1, num_threads);
  job.head_rows = chunk_rows(step.head.num_rows, 1, num_threads);
}

// Hands out the arena's pieces; on the first pass, with `arena` null, only adds up their sizes.
struct Pieces {
  Arena* arena;
  size_t nbytes = 0;

  template <class T>
  void take(T*& piece, int64_t n) {
    nbytes += Arena::piece_nbytes<T>(n);
    if (arena) piece = arena->take<T>(n);
  }
  void take(Activations& activations, int64_t n, int64_t num_cols) {
    nbytes += Activations::nbytes(n, num_cols);
    if (arena) activations = Activations::take(*arena, n, num_cols);
  }
};

size_t take_pieces(StepJob& job, int num_threads, Arena* arena) {
  const Step& step = job.step;
  Pieces pieces{arena};
  const int64_t width = step.num_heads * step.head_dim;
  pieces.take(job.hidden, step.hidden_size);
  pieces.take(job.normed, step.hidden_size);
  pieces.take(job.cos, step.head_dim / 2);
  pieces.take(job.sin, step.head_dim / 2);
  pieces.take(job.queries, width);
  pieces.take(job.attended, width);
  pieces.take(job.partial, job.num_splits * step.num_heads * job.head_ld);
  pieces.take(job.partial_largest, job.num_splits * step.num_heads);
  pieces.take(job.partial_sums, job.num_splits * step.num_heads);
  pieces.take(job.router_logits, step.num_experts);
  pieces.take(job.biased, step.num_experts);
  pieces.take(job.chosen, step.num_experts_per_tok);
  pieces.take(job.inputs, 1, step.hidden_size);
  pieces.take(job.attended_inputs, 1, width);
  pieces.take(job.shared_width, 1, step.gated_width);
  pieces.take(job.routed_width, step.num_experts_per_tok, step.routed_width);
  const int64_t num_queries = step.num_heads / step.num_kv_heads;
  for (int t = 0; t < num_threads; t++) {
    StepScratch& scratch = job.scratch[t];
    for (float** piece : {&scratch.gate, &scratch.up, &scratch.sums}) {
      pieces.take(*piece, kFeatures);
    }
    pieces.take(scratch.queries, num_queries * job.head_ld);
    pieces.take(scratch.scores, num_queries * job.split_positions);
    pieces.take(scratch.out, job.head_ld);
  }
  return pieces.nbytes;
}

void add_attention(std::vector<Phase>& phases, StepStage& stage) {
  const StepJob& job = *stage.job;
  const Step& step = job.step;
  const StepLayer& layer = *stage.layer;
  const int64_t out_chunks = chunks_of(step.hidden_size, job.o_rows);
  phases.push_back({chunks_of(layer.qkv.num_rows, job.qkv_rows), qkv_chunk, &stage});
  phases.push_back({job.num_splits * step.num_kv_heads, attend_chunk, &stage});
  phases.push_back({step.num_heads, combine_chunk, &stage, after_attention});
  phases.push_back({out_chunks, o_chunk, &stage, after_o});
}

void add_mlp(std::vector<Phase>& phases, StepStage& stage) {
  const StepJob& job = *stage.job;
  const Step& step = job.step;
  const StepLayer& layer = *stage.layer;
  const int64_t blocks = layer.shared ? num_blocks_of(layer.shared->down.num_cols) : 0;
  if (layer.router) {
    stage.num_router_chunks = chunks_of(step.num_experts, kRouterRows);
    phases.push_back({stage.num_router_chunks + blocks, router_chunk, &stage, after_router});
    const int64_t routed = step.num_experts_per_tok * job.routed_width.num_blocks;
    phases.push_back({routed, routed_chunk, &stage});
  } else {
    phases.push_back({blocks, router_chunk, &stage});
  }
  phases.push_back({chunks_of(step.hidden_size, job.o_rows), down_chunk, &stage, after_down});
}

// The residual stream as it is where the token begins, or where it stopped.
void begin(StepJob& job) {
  const Step& step = job.step;
  if (step.begin_layer < 0) {
    embed(job);
    job.norm(step.layers[0].input_norm, job.split);
  } else {
    std::memcpy(job.hidden, step.hidden, size_t(step.hidden_size) * sizeof(float));
    job.norm(step.layers[step.begin_layer].post_norm, job.split);
  }
}

}  // namespace

Status run_step(const Kernels& kernels, const Step& step) {
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.guard());
  const int num_threads = pool.num_threads();
  StepJob job{kernels, step, pool};
  plan(job, num_threads);
  std::vector<StepStage> stages;
  std::vector<Phase> phases;
  try {
    if (!shared_arena().reserve(take_pieces(job, num_threads, nullptr))) return kNoMemory;
    take_pieces(job, num_threads, &shared_arena());
    const int64_t first = step.begin_layer < 0 ? 0 : step.begin_layer;
    for (int64_t i = first; i < step.num_layers; i++) {
      stages.push_back({&job, step.layers + i, i, 0});
    }
    for (StepStage& stage : stages) {
      if (stage.layer_idx != step.begin_layer) add_attention(phases, stage);
      add_mlp(phases, stage);
    }
    phases.push_back({chunks_of(step.head.num_rows, job.head_rows), head_chunk, &stages[0]});
    pool.reserve(int(phases.size()));
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  find_angles(job);
  begin(job);
  pool.run(phases.data(), int(phases.size()));
  if (!job.finite) return kNotFinite;
  if (job.is_here) return kOk;
  std::memcpy(step.hidden, job.hidden, size_t(step.hidden_size) * sizeof(float));
  return kNotHere;
}

}  // namespace native
