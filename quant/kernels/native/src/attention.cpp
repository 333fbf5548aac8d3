// Attention of a chunk of a prompt: chunks of work are some tokens of the heads that share a key
// head, the last tokens first, since they see most.
#include <atomic>
#include <iterator>

#include "jobs.h"

namespace native {
namespace {

// Rows of a chunk at most, so that what it needs stays in a core's second cache.
constexpr int64_t kMostRows = 320, kMostTokens = 64, kLeastTokens = 16;

struct AttendJob {
  const Kernels& kernels;
  const Attend& call;
  int64_t tokens_per_chunk, num_chunks_of_tokens;
  AttentionScratch scratch[kMaxThreads];
  std::atomic<bool> finite{true};
};

void attend_tokens(void* context, int64_t chunk, int thread) {
  auto& job = *static_cast<AttendJob*>(context);
  const Attend& call = job.call;
  const int64_t group = call.num_heads / call.num_kv_heads, kv_head = chunk % call.num_kv_heads;
  const int64_t block = job.num_chunks_of_tokens - 1 - chunk / call.num_kv_heads;
  const int64_t first = block * job.tokens_per_chunk, rest = call.num_tokens - first;
  const int64_t tokens = rest < job.tokens_per_chunk ? rest : job.tokens_per_chunk;
  const int64_t nbytes = call.dtype == kBFloat16 ? 2 : 4, dim = call.head_dim;
  AttentionScratch scratch = job.scratch[thread];
  scratch.num_rows = round_up(group * tokens, kGroup);
  const int64_t head_step = call.num_tokens * dim;
  const ManyQueries queries{
      static_cast<const char*>(call.queries) + (kv_head * group * head_step + first * dim) * nbytes,
      static_cast<const char*>(call.keys) + kv_head * call.kv_step * nbytes,
      static_cast<const char*>(call.values) + kv_head * call.kv_step * nbytes,
      call.dtype, dim, group, tokens, head_step, call.num_held - call.num_tokens + first};
  if (!job.kernels.attend_many(queries, scratch)) job.finite = false;
  for (int64_t head = 0; head < group; head++) {
    for (int64_t i = 0; i < tokens; i++) {
      const int64_t at = (first + i) * call.num_heads + kv_head * group + head;
      store_row(job.kernels, scratch.out + (head * tokens + i) * scratch.ld, dim, call.out,
                call.dtype, at * dim);
    }
  }
}

// So few tokens a chunk that all threads have some; results do not depend on it.
int64_t choose_tokens(const Attend& call, int num_threads) {
  int64_t tokens = kMostRows / (call.num_heads / call.num_kv_heads) / kLeastTokens * kLeastTokens;
  tokens = tokens > kMostTokens ? kMostTokens : tokens;
  while (tokens > kLeastTokens &&
         (call.num_tokens + tokens - 1) / tokens * call.num_kv_heads < 2 * num_threads) {
    tokens -= kLeastTokens;
  }
  return tokens < kLeastTokens ? kLeastTokens : tokens;
}

bool take_scratch(AttendJob& job, int num_threads) {
  const Attend& call = job.call;
  const int64_t ld = round_up(call.head_dim, kGroup);
  const int64_t rows =
      round_up(call.num_heads / call.num_kv_heads * job.tokens_per_chunk, kGroup);
  const int64_t sizes[] = {ld * rows, kKeys * ld, kKeys * rows, rows * ld, rows, rows, rows};
  size_t nbytes = 0;
  for (int64_t size : sizes) nbytes += Arena::piece_nbytes<float>(size);
  Arena& arena = shared_arena();
  if (!arena.reserve(nbytes * size_t(num_threads))) return false;
  for (int t = 0; t < num_threads; t++) {
    AttentionScratch& scratch = job.scratch[t];
    float** pieces[] = {&scratch.queries, &scratch.keys, &scratch.scores, &scratch.out,
                        &scratch.largest, &scratch.sums, &scratch.factors};
    for (size_t i = 0; i < std::size(pieces); i++) *pieces[i] = arena.take<float>(sizes[i]);
    scratch.ld = ld;
  }
  return true;
}

}  // namespace

Status run_attend(const Kernels& kernels, const Attend& call) {
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.guard());
  const int num_threads = pool.num_threads();
  AttendJob job{kernels, call, choose_tokens(call, num_threads), 0};
  job.num_chunks_of_tokens = (call.num_tokens + job.tokens_per_chunk - 1) / job.tokens_per_chunk;
  if (!take_scratch(job, num_threads)) return kNoMemory;
  const Phase phase{job.num_chunks_of_tokens * call.num_kv_heads, attend_tokens, &job};
  pool.run(&phase, 1);
  return job.finite ? kOk : kNotFinite;
}

}  // namespace native
