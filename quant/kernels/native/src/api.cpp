// The exported functions, and the choice of instruction set.
#include "cpu.h"
#include "jobs.h"

namespace native {
namespace {

constexpr int32_t kAbi = 6;  // raise it with every change of native.h; library.py holds the same

constexpr int kMaxPaths = 6;

// Fastest first; index = the `path` of the calls.
struct Paths {
  const Kernels* found[kMaxPaths];
  int num = 0;

  Paths() {
    if (cpu_has_amx()) add(amx_kernels());
    if (cpu_has_avx512()) add(avx512_kernels());
    if (cpu_has_avx2()) add(avx2_kernels());
    if (cpu_has_dotprod()) add(neon_kernels());
    add(portable_kernels());
    if (cpu_has_avx512()) add(emulated_amx_kernels());  // never chosen unless it is asked for
  }
  void add(const Kernels* kernels) {
    if (kernels) found[num++] = kernels;
  }
};

const Paths& paths() {
  static const Paths paths;
  return paths;
}

const Kernels* kernels_of(int32_t path) {
  if (path < 0) path = 0;
  return path < paths().num ? paths().found[path] : nullptr;
}

// Tiles pay for dozens of tokens: a prompt of 32 is read 0.8 times as fast, one of 128 1.5 times.
constexpr int64_t kFewTokens = 64;

const Kernels* kernels_for(int32_t path, int64_t num_tokens) {
  const bool has_tiles = paths().num > 1 && paths().found[0]->joined_tokens;
  return kernels_of(path < 0 && has_tiles && num_tokens < kFewTokens ? 1 : path);
}

struct ReadJob {
  const Kernels* kernels;
  const uint8_t* data;
  int64_t nbytes;
  std::atomic<uint64_t> sum{0};
};

constexpr int64_t kReadChunk = 1 << 18;

void read_chunk(void* context, int64_t chunk, int) {
  auto& job = *static_cast<ReadJob*>(context);
  const int64_t begin = chunk * kReadChunk;
  const int64_t rest = job.nbytes - begin;
  job.sum ^= job.kernels->read(job.data + begin, rest < kReadChunk ? rest : kReadChunk);
}

}  // namespace
}  // namespace native

using namespace native;

NATIVE_API int32_t native_abi() { return kAbi; }

// Name of an instruction set by index, fastest first; null past the last.
NATIVE_API const char* native_path_name(int32_t path) {
  return path >= 0 && path < paths().num ? paths().found[path]->name : nullptr;
}

NATIVE_API void native_set_num_threads(int32_t num_threads) {
  Pool::instance().set_num_threads(num_threads);
}

NATIVE_API int32_t native_num_threads() { return Pool::instance().num_threads(); }

NATIVE_API int32_t native_matmul(int32_t path, const Matrix* weight, const void* hidden_states,
                                 int32_t dtype, int64_t num_tokens, void* out) {
  const Kernels* kernels = kernels_for(path, num_tokens);
  if (!kernels) return kUnknownPath;
  return run_matmul(*kernels, *weight, hidden_states, dtype, num_tokens, out);
}

NATIVE_API int32_t native_layer(const Layer* layer) {
  const Kernels* kernels = kernels_for(layer->path, layer->num_tokens);
  if (!kernels) return kUnknownPath;
  return run_layer(*kernels, *layer);
}

NATIVE_API int32_t native_attend(const Attend* call) {
  const Kernels* kernels = kernels_of(call->path);
  if (!kernels) return kUnknownPath;
  return run_attend(*kernels, *call);
}

NATIVE_API int32_t native_step(const Step* step) {
  const Kernels* kernels = kernels_of(step->path);
  if (!kernels) return kUnknownPath;
  return run_step(*kernels, *step);
}

NATIVE_API int32_t native_encode(const Encoding* encoding) {
  const Kernels* kernels = kernels_of(encoding->path);
  if (!kernels) return kUnknownPath;
  return run_encoding(*kernels, *encoding);
}

NATIVE_API void* native_serve(const Service* service) {
  const Kernels* kernels = kernels_of(service->path);
  return kernels ? start_server(*kernels, *service) : nullptr;
}

NATIVE_API void native_serve_wake(void* server) { wake_server(server); }

NATIVE_API void native_serve_use(void* server, ServiceUse* use) { *use = server_use(server); }

NATIVE_API void native_serve_stop(void* server) { stop_server(server); }

// Reads a buffer once on all threads: what memory gives, to hold the products against.
NATIVE_API uint64_t native_read(const void* data, int64_t nbytes) {
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.guard());
  ReadJob job{kernels_of(-1), static_cast<const uint8_t*>(data), nbytes};
  const Phase phase{(nbytes + kReadChunk - 1) / kReadChunk, read_chunk, &job};
  pool.run(&phase, 1);
  return job.sum;
}
