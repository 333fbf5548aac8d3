// A layer of experts in one parallel region of three phases: quantize the tokens; gate, up and
// SwiGLU of every chosen expert, cut by rows; down and the weighted sum, cut by output rows.
//
// A (token, expert) pair is the unit of work. Pairs are grouped by expert, so that each weight is
// read and unpacked once however many tokens chose it, and a token's sum runs in a fixed order.
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "jobs.h"

namespace native {
namespace {

constexpr int64_t kFeatures = 64;  // of the intermediate in a chunk: one block to quantize

// An expert with at least one token.
struct Slot {
  const Expert* expert;
  int64_t first_pair, num_pairs;
  int64_t first_chunk;  // of the gate and up phase
  Activations intermediate;  // one row a pair
  int64_t width() const { return expert->down.num_cols; }
};

struct LayerJob {
  const Kernels& kernels;
  const Layer& layer;
  std::vector<Slot> slots;
  std::vector<int64_t> pair_tokens;
  std::vector<float> pair_weights;
  std::vector<int64_t> pair_of_choice;  // by token and choice, as topk_ids
  std::vector<Token> inputs, intermediates;  // by pair
  bool split_inputs = false;
  int64_t num_gate_chunks = 0, max_pairs = 0, max_cols = 0;
  int64_t out_rows = 0;  // of the output in a chunk of the down phase, at most kFeatures
  Activations activations;
  int8_t* joined_codes = nullptr;  // of the tokens by pair, for kernels that want them joined
  struct Scratch {
    float* row;       // an input as float32
    float* gate;      // [max_pairs, 64]
    float* up;        // [max_pairs, 64]; afterwards down's result [max_pairs, out_rows]
    float* sums;      // [num_tokens, out_rows]
    Unpacked unpacked;
  } scratch[kMaxThreads];
  std::atomic<bool> finite{true};
};

// Copies a token's codes to the place of each of its pairs.
void join(const LayerJob& job, int64_t token) {
  const int64_t k = job.layer.num_experts_per_tok, stride = job.activations.num_blocks * kBlock;
  for (int64_t i = token * k; i < (token + 1) * k; i++) {
    std::memcpy(job.joined_codes + job.pair_of_choice[size_t(i)] * stride,
                job.activations.token(token).codes, size_t(stride));
  }
}

void quantize_chunk(void* context, int64_t chunk, int thread) {
  auto& job = *static_cast<LayerJob*>(context);
  const Layer& layer = job.layer;
  const int64_t begin = chunk * kTokensPerChunk, all = layer.num_tokens;
  const int64_t end = begin + kTokensPerChunk < all ? begin + kTokensPerChunk : all;
  for (int64_t i = begin; i < end; i++) {
    const float* x = row_as_float(job.kernels, layer.hidden_states, layer.dtype, i,
                                  layer.hidden_size, job.scratch[thread].row);
    if (!job.activations.quantize(job.kernels, x, i, job.split_inputs)) job.finite = false;
    if (job.joined_codes) join(job, i);
  }
}

void gate_up_chunk(void* context, int64_t chunk, int thread) {
  auto& job = *static_cast<LayerJob*>(context);
  const Kernels& kernels = job.kernels;
  size_t s = 0;
  while (s + 1 < job.slots.size() && job.slots[s + 1].first_chunk <= chunk) s++;
  const Slot& slot = job.slots[s];
  const auto& scratch = job.scratch[thread];
  const int64_t block = chunk - slot.first_chunk, first = block * kFeatures;
  const int64_t width = slot.width();
  const int64_t features = width - first < kFeatures ? width - first : kFeatures;
  const Token* inputs = job.inputs.data() + slot.first_pair;
  const Matrix& weight = slot.expert->gate_up;
  multiply_rows(kernels, weight, first, features, inputs, slot.num_pairs, scratch.gate, kFeatures,
                scratch.unpacked);
  multiply_rows(kernels, weight, width + first, features, inputs, slot.num_pairs, scratch.up,
                kFeatures, scratch.unpacked);
  const bool split = slot.expert->down.kind == kCodebook;
  const Activations& to = slot.intermediate;
  for (int64_t i = 0; i < slot.num_pairs; i++) {
    float* gate = scratch.gate + i * kFeatures;
    kernels.swiglu(gate, scratch.up + i * kFeatures, features, gate);
    const int64_t at = i * to.num_blocks + block;
    if (!kernels.quantize(gate, features, split, to.codes + at * kBlock, to.scales + at,
                          to.offsets + at)) {
      job.finite = false;
    }
  }
}

void down_chunk(void* context, int64_t chunk, int thread) {
  auto& job = *static_cast<LayerJob*>(context);
  const Kernels& kernels = job.kernels;
  const Layer& layer = job.layer;
  const auto& scratch = job.scratch[thread];
  const int64_t step = job.out_rows, first = chunk * step;
  const int64_t rows =
      layer.hidden_size - first < step ? layer.hidden_size - first : step;
  for (int64_t i = 0; i < layer.num_tokens * step; i++) scratch.sums[i] = 0;
  for (const Slot& slot : job.slots) {
    multiply_rows(kernels, slot.expert->down, first, rows,
                  job.intermediates.data() + slot.first_pair, slot.num_pairs, scratch.up, step,
                  scratch.unpacked);
    for (int64_t i = 0; i < slot.num_pairs; i++) {
      const int64_t pair = slot.first_pair + i;
      kernels.add_scaled(scratch.up + i * step, job.pair_weights[size_t(pair)], rows,
                         scratch.sums + job.pair_tokens[size_t(pair)] * step);
    }
  }
  for (int64_t i = 0; i < layer.num_tokens; i++) {
    store_row(kernels, scratch.sums + i * step, rows, layer.out, layer.dtype,
              i * layer.hidden_size + first);
  }
}

void add_slot(LayerJob& job, const Expert* expert, int64_t first_pair) {
  const int64_t num_pairs = int64_t(job.pair_tokens.size()) - first_pair;
  job.slots.push_back({expert, first_pair, num_pairs, job.num_gate_chunks, {}});
  const int64_t width = expert->down.num_cols;
  job.num_gate_chunks += (width + kFeatures - 1) / kFeatures;
  job.max_pairs = num_pairs > job.max_pairs ? num_pairs : job.max_pairs;
  job.max_cols = width > job.max_cols ? width : job.max_cols;
}

// Groups the pairs by expert, ids in ascending order, tokens in ascending order within one.
void collect_slots(LayerJob& job) {
  const Layer& layer = job.layer;
  const int64_t k = layer.num_experts_per_tok, chosen = layer.num_tokens * k;
  std::vector<int64_t> begins(size_t(layer.num_experts) + 1, 0);
  for (int64_t i = 0; i < chosen; i++) begins[size_t(layer.topk_ids[i]) + 1]++;
  for (size_t e = 0; e < size_t(layer.num_experts); e++) begins[e + 1] += begins[e];
  std::vector<int64_t> order(static_cast<size_t>(chosen)), at(begins);
  job.pair_of_choice.resize(size_t(chosen));
  for (int64_t i = 0; i < chosen; i++) order[size_t(at[size_t(layer.topk_ids[i])]++)] = i;

  for (int64_t e = 0; e < layer.num_experts; e++) {
    const int64_t begin = begins[size_t(e)], end = begins[size_t(e) + 1];
    for (int64_t i = begin; i < end; i++) {
      job.pair_of_choice[size_t(order[size_t(i)])] = i;
      job.pair_tokens.push_back(order[size_t(i)] / k);
      job.pair_weights.push_back(layer.topk_weights[order[size_t(i)]]);
    }
    if (end > begin) add_slot(job, layer.experts[e], begin);
  }
  for (int64_t s = 0; s < layer.num_shared; s++) {
    const int64_t begin = int64_t(job.pair_tokens.size());
    for (int64_t i = 0; i < layer.num_tokens; i++) {
      job.pair_tokens.push_back(i);
      job.pair_weights.push_back(1.0f);
    }
    if (layer.num_tokens) add_slot(job, layer.shared[s], begin);
  }
}

// Inputs are quantized once for all slots, so all must want the same order of codes.
bool one_kind(LayerJob& job) {
  for (const Slot& slot : job.slots) {
    const bool split = slot.expert->gate_up.kind == kCodebook;
    if (&slot == job.slots.data()) job.split_inputs = split;
    if (split != job.split_inputs) return false;
  }
  return true;
}

bool take_scratch(LayerJob& job, int num_threads) {
  const Layer& layer = job.layer;
  Arena& arena = shared_arena();
  const int64_t cols = job.max_cols > layer.hidden_size ? job.max_cols : layer.hidden_size;
  const int64_t routed = layer.num_tokens * layer.num_experts_per_tok;
  const bool join = job.kernels.joined_tokens && layer.num_tokens > 1;
  const int64_t stride = num_blocks_of(layer.hidden_size) * kBlock;
  const int64_t joined = join ? (routed + kTileTokens - 1) * stride : 0;
  size_t nbytes = Activations::nbytes(layer.num_tokens, layer.hidden_size) +
                  Arena::piece_nbytes<int8_t>(joined);
  for (const Slot& slot : job.slots) nbytes += Activations::nbytes(slot.num_pairs, slot.width());
  nbytes += size_t(num_threads) *
            (Arena::piece_nbytes<float>(layer.hidden_size) +
             2 * Arena::piece_nbytes<float>(job.max_pairs * kFeatures) +
             Arena::piece_nbytes<float>(layer.num_tokens * job.out_rows) + Unpacked::nbytes(cols));
  if (!arena.reserve(nbytes)) return false;
  job.activations = Activations::take(arena, layer.num_tokens, layer.hidden_size);
  if (join) job.joined_codes = arena.take<int8_t>(joined);
  for (size_t i = 0; i < job.pair_tokens.size(); i++) {
    job.inputs.push_back(job.activations.token(job.pair_tokens[i]));
    if (join && int64_t(i) < routed) job.inputs[i].codes = job.joined_codes + int64_t(i) * stride;
  }
  for (Slot& slot : job.slots) {
    slot.intermediate = Activations::take(arena, slot.num_pairs, slot.width());
    for (int64_t i = 0; i < slot.num_pairs; i++) {
      job.intermediates.push_back(slot.intermediate.token(i));
    }
  }
  for (int t = 0; t < num_threads; t++) {
    auto& scratch = job.scratch[t];
    scratch.row = arena.take<float>(layer.hidden_size);
    scratch.gate = arena.take<float>(job.max_pairs * kFeatures);
    scratch.up = arena.take<float>(job.max_pairs * kFeatures);
    scratch.sums = arena.take<float>(layer.num_tokens * job.out_rows);
    scratch.unpacked = Unpacked::take(arena, cols);
  }
  return true;
}

}  // namespace

Status run_layer(const Kernels& kernels, const Layer& layer) {
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.guard());
  LayerJob job{kernels, layer};
  try {
    collect_slots(job);
    if (!one_kind(job)) return kMixedKinds;
    job.out_rows = chunk_rows(layer.hidden_size, layer.num_tokens, pool.num_threads());
    if (!take_scratch(job, pool.num_threads())) return kNoMemory;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  Phase quantize{(layer.num_tokens + kTokensPerChunk - 1) / kTokensPerChunk, quantize_chunk, &job};
  if (quantize.num_chunks == 1) {  // not worth a barrier
    quantize_chunk(&job, 0, 0);
    quantize.num_chunks = 0;
  }
  const int64_t out_chunks = (layer.hidden_size + job.out_rows - 1) / job.out_rows;
  const Phase phases[] = {
      quantize, {job.num_gate_chunks, gate_up_chunk, &job}, {out_chunks, down_chunk, &job}};
  pool.run(phases, 3);
  return job.finite ? kOk : kNotFinite;
}

}  // namespace native
