// The jobs of the library: a product with one weight, a layer of experts, quantizing a weight.
#pragma once
#include "kernels.h"
#include "native.h"
#include "pool.h"
#include "products.h"

namespace native {

// All hold the pool's guard while they run, and all but encoding share one arena.
Status run_matmul(const Kernels& kernels, const Matrix& weight, const void* hidden_states,
                  int32_t dtype, int64_t num_tokens, void* out);
Status run_layer(const Kernels& kernels, const Layer& layer);

// Attention of a chunk of a prompt.
Status run_attend(const Kernels& kernels, const Attend& call);

// One decoded token; see step.cpp.
Status run_step(const Kernels& kernels, const Step& step);

Status run_encoding(const Kernels& kernels, const Encoding& encoding);

// The server of a GPU's requests; see serve.cpp. Null if it could not be started.
void* start_server(const Kernels& kernels, const Service& service);
void wake_server(void* server);
ServiceUse server_use(void* server);
void stop_server(void* server);

Arena& shared_arena();

// Rows that one chunk of work covers: enough chunks to share evenly, long enough to stream.
int64_t chunk_rows(int64_t num_rows, int64_t num_tokens, int num_threads);

// Tokens that one chunk of the quantizing phase covers.
constexpr int64_t kTokensPerChunk = 8;

}  // namespace native
