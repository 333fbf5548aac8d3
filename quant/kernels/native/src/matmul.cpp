// One product: quantize the activations, then chunks of output rows over all threads.
#include <atomic>

#include "jobs.h"

namespace native {
namespace {

struct MatmulJob {
  const Kernels& kernels;
  const Matrix& weight;
  const void* hidden_states;
  int32_t dtype;
  int64_t num_tokens;
  void* out;
  bool split;
  int64_t rows_per_chunk;
  Activations activations;
  Token* tokens;
  float* results[kMaxThreads];  // [num_tokens, rows_per_chunk], by thread
  float* wide_rows[kMaxThreads];
  Unpacked unpacked[kMaxThreads];
  std::atomic<bool> finite{true};
};

void quantize_chunk(void* context, int64_t chunk, int thread) {
  auto& job = *static_cast<MatmulJob*>(context);
  const int64_t begin = chunk * kTokensPerChunk;
  const int64_t end = begin + kTokensPerChunk < job.num_tokens ? begin + kTokensPerChunk
                                                               : job.num_tokens;
  for (int64_t i = begin; i < end; i++) {
    const float* x = row_as_float(job.kernels, job.hidden_states, job.dtype, i,
                                  job.weight.num_cols, job.wide_rows[thread]);
    if (!job.activations.quantize(job.kernels, x, i, job.split)) job.finite = false;
    job.tokens[i] = job.activations.token(i);
  }
}

void multiply_chunk(void* context, int64_t chunk, int thread) {
  auto& job = *static_cast<MatmulJob*>(context);
  const int64_t first = chunk * job.rows_per_chunk, all = job.weight.num_rows;
  const int64_t rows = all - first < job.rows_per_chunk ? all - first : job.rows_per_chunk;
  float* results = job.results[thread];
  multiply_rows(job.kernels, job.weight, first, rows, job.tokens, job.num_tokens, results,
                job.rows_per_chunk, job.unpacked[thread]);
  for (int64_t i = 0; i < job.num_tokens; i++) {
    store_row(job.kernels, results + i * job.rows_per_chunk, rows, job.out, job.dtype,
              i * all + first);
  }
}

bool take_scratch(MatmulJob& job, int num_threads) {
  const int64_t n = job.num_tokens, cols = job.weight.num_cols;
  Arena& arena = shared_arena();
  const size_t per_thread = Arena::piece_nbytes<float>(n * job.rows_per_chunk) +
                            Arena::piece_nbytes<float>(cols) + Unpacked::nbytes(cols);
  if (!arena.reserve(Activations::nbytes(n, cols) + Arena::piece_nbytes<Token>(n) +
                     size_t(num_threads) * per_thread)) {
    return false;
  }
  job.activations = Activations::take(arena, n, cols);
  job.tokens = arena.take<Token>(n);
  for (int t = 0; t < num_threads; t++) {
    job.results[t] = arena.take<float>(n * job.rows_per_chunk);
    job.wide_rows[t] = arena.take<float>(cols);
    job.unpacked[t] = Unpacked::take(arena, cols);
  }
  return true;
}

}  // namespace

Arena& shared_arena() {
  static Arena arena;
  return arena;
}

int64_t chunk_rows(int64_t num_rows, int64_t num_tokens, int num_threads) {
  constexpr int64_t kMost = 64, kChunksPerThread = 8, kFewTokens = 8;
  const int64_t least = num_tokens > kFewTokens ? kWideRows : kGroup;
  const int64_t fair = num_rows / (kChunksPerThread * num_threads) / kGroup * kGroup;
  return fair < least ? least : fair > kMost ? kMost : fair;
}

Status run_matmul(const Kernels& kernels, const Matrix& weight, const void* hidden_states,
                  int32_t dtype, int64_t num_tokens, void* out) {
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.guard());
  const int num_threads = pool.num_threads();
  MatmulJob job{kernels, weight, hidden_states, dtype, num_tokens, out};
  job.split = weight.kind == kCodebook;
  job.rows_per_chunk = chunk_rows(weight.num_rows, num_tokens, num_threads);
  if (!take_scratch(job, num_threads)) return kNoMemory;

  Phase quantize{(num_tokens + kTokensPerChunk - 1) / kTokensPerChunk, quantize_chunk, &job};
  if (quantize.num_chunks == 1) {  // not worth a barrier
    quantize_chunk(&job, 0, 0);
    quantize.num_chunks = 0;
  }
  const int64_t chunks = (weight.num_rows + job.rows_per_chunk - 1) / job.rows_per_chunk;
  const Phase phases[] = {quantize, {chunks, multiply_chunk, &job}};
  pool.run(phases, 2);
  return job.finite ? kOk : kNotFinite;
}

}  // namespace native
