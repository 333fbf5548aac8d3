// The C interface of the native kernels. Mirrored field by field in ../library.py.
//
// Every buffer is checked by the caller (../checks.py): this code trusts shapes and pointers, and
// reports only what the data itself can do wrong, as a status.
#pragma once
#include <cstdint>

#if defined(_WIN32)
#define NATIVE_API extern "C" __declspec(dllexport)
#else
#define NATIVE_API extern "C" __attribute__((visibility("default")))
#endif

enum Status : int32_t {
  kOk = 0,
  kNotFinite = 1,    // an activation is NaN or infinite
  kNoMemory = 2,     // scratch could not be allocated
  kTooLarge = 3,     // a weight's scale does not fit float16
  kMixedKinds = 4,   // one layer mixes codebook and int8 weights in one place
  kUnknownPath = 5,  // the asked-for instruction set is not in this library or this CPU
  kBadRequest = 6,   // a GPU asked for an expert that is not there
  kNotFetched = 7,   // and whoever should have brought it could not
  kNotHere = 8,      // a step stopped where an expert is not in memory; it can go on from there
};

enum Kind : int32_t { kCodebook = 0, kInt8 = 1 };
enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// A quantized weight [num_rows, num_cols].
// kCodebook: codes int32 [rows/16, cols/64, 8, 16] (word (t, r), nibble j = code k 8t+j of row r),
//            absmax float16 [rows/16, cols/64, 16]; value = levels[code] · unit · absmax.
// kInt8:     codes int8 [rows, cols], absmax float32 [rows]; value = code · unit · absmax.
struct Matrix {
  const void* codes;
  const void* absmax;
  int64_t num_rows;
  int64_t num_cols;
  int32_t kind;
  float unit;
  int8_t levels[16];
};

struct Expert {
  Matrix gate_up;  // [2I, H], the gate's rows first
  Matrix down;     // [H, I]
};

// A float weight to be quantized to codebook codes and their absmax, in Matrix's layout.
struct Encoding {
  const void* weight;  // [num_rows, num_cols] of dtype; rows % 16 == 0, cols % 64 == 0
  void* codes;
  void* absmax;
  int64_t num_rows;
  int64_t num_cols;
  int32_t dtype;
  int32_t path;
  float bounds[16];  // 15 of them, ascending, halfway between neighbouring values
  uint8_t code_of_rank[16];
};

// One layer of experts. `shared` experts serve every token with weight 1; they are further slots
// of the same parallel region.
struct Layer {
  const void* hidden_states;     // [num_tokens, hidden_size] of dtype
  void* out;                     // the same shape and dtype
  const int64_t* topk_ids;       // [num_tokens, num_experts_per_tok]
  const float* topk_weights;     // likewise
  const Expert* const* experts;  // by id; null where no token chose it
  const Expert* const* shared;
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t num_experts_per_tok;
  int64_t num_experts;
  int64_t num_shared;
  int32_t dtype;
  int32_t path;  // index of the instruction set, −1 for the best
};

// Attention of the last tokens of a cache over all up to their own.
struct Attend {
  const void* queries;  // [num_heads, num_tokens, head_dim] of dtype
  const void* keys;     // num_kv_heads times [num_held, head_dim], kv_step elements apart
  const void* values;   // likewise
  void* out;            // [num_tokens, num_heads, head_dim] of dtype
  int64_t num_heads, num_kv_heads, head_dim, num_tokens, num_held, kv_step;
  int32_t dtype, path;
};

// One decoder block of a step. A dense block has no router; its MLP is then `shared`.
struct StepLayer {
  const float* input_norm;       // [hidden_size]
  const float* post_norm;        // [hidden_size]
  const float* router;           // [num_experts, hidden_size] or null
  const float* correction_bias;  // [num_experts]
  const Expert* const* experts;  // by id; null where one is not in memory
  const Expert* shared;          // or null
  int64_t* counts;               // [num_experts], of how often each was chosen
  Matrix qkv;
  Matrix o;
};

// One token through the whole model. All linear maps are of one kind, the head's may differ.
struct Step {
  const StepLayer* layers;
  const float* norm;                 // [hidden_size]
  const float* inverse_frequencies;  // [head_dim / 2]
  const void* embedding;             // int8 or bfloat16 [vocab_size, hidden_size]
  const float* embedding_absmax;     // [vocab_size], or null if it is bfloat16
  void* kv_cache;                    // [2, num_layers, num_kv_heads, capacity, head_dim] of dtype
  float* logits;                     // [vocab_size]
  float* hidden;                     // [hidden_size], kept where a token stops and goes on
  int64_t* wanted;                   // [1 + num_experts_per_tok]: the layer where it stopped, and
                                     // what that one chose in ascending order
  Matrix head;
  int64_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim;
  int64_t num_experts, num_experts_per_tok, routed_width;
  int64_t gated_width;  // the largest of a dense or shared MLP
  int64_t capacity, position, token_id;
  int64_t begin_layer;  // where a token goes on that had stopped; −1 for one that begins
  float eps, norm_min;
  int32_t dtype, path;
};

constexpr int32_t kMaxAsked = 16;
constexpr int64_t kVectorOffset = 256;  // of the float32 vector in a request or an answer, bytes

// What a GPU wants computed, in memory that it can write: some experts for one token, or, with
// num_rows, one expert for each row of the service's.
struct Request {
  uint32_t number;  // counts up; written after everything else
  int32_t layer_idx;
  int32_t num_experts;
  int32_t num_rows;
  int32_t ids[kMaxAsked];
  float weights[kMaxAsked];
  // at kVectorOffset: the token's normed activations, float32 [hidden_size]
};

struct Answer {
  uint32_t number;  // of the request that this answers; written after everything else
  int32_t status;   // the first failure stays until somebody clears it
  // at kVectorOffset: the weighted sum of the experts, float32 [hidden_size]
};

// Brings experts of a layer that are not there, on the thread of the service: afterwards it finds
// them where it looks. Returns 0, or something else if they cannot be had.
using Fetch = int32_t (*)(int32_t layer_idx, const int64_t* ids, int64_t num_ids);

// A thread that answers requests until it is stopped.
struct Service {
  const Request* request;
  Answer* answer;
  const Expert* const* const* experts;  // by layer and id; who changes one sees to it that no
                                        // request for it is under way
  const void* rows;          // bfloat16 [max_rows, hidden_size], written by the GPU
  void* row_answers;         // bfloat16, the same shape: the weighted results
  const int64_t* row_ids;    // [max_rows]
  const float* row_weights;  // [max_rows]
  int64_t* uses;  // [num_layers, num_experts]: counts the experts that tokens ask for
  Fetch fetch;    // asked with all experts of a token's request if one is missing; may be null
  int64_t num_layers, hidden_size, num_experts, max_rows;
  int32_t path;
};

struct ServiceUse {
  int64_t num_requests, num_experts, busy_ns;  // of single tokens
  int64_t num_rows, rows_ns;
};
