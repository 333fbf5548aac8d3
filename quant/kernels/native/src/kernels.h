// What one instruction set provides: a table of functions, filled once per translation unit.
#pragma once
#include <cstdint>

namespace native {

constexpr int64_t kBlock = 64;       // weights that share a scale, and activations that do
constexpr int64_t kGroup = 16;       // output rows interleaved in a codebook weight
constexpr int64_t kTileTokens = 16;  // read together where a CPU has tiles
constexpr int64_t kWideRows = 32;    // rows unpacked at a time for products with many tokens

// One token's activations, quantized to int8 with a scale a block of 64. For codebook weights the
// codes of every 8 are ordered 0 2 4 6 1 3 5 7, as the low and high nibbles of a byte come apart.
struct Token {
  const int8_t* codes;     // [num_blocks · 64], zeros behind the last column
  const float* scales;     // [num_blocks]
  const int32_t* offsets;  // [num_blocks], −128 · Σ codes: undoes weights stored as code + 128
};

// Some positions of one key and value head, and the queries that share it. head_dim is padded with
// zeros to a multiple of 16, `ld`, in queries and out.
struct Attention {
  const void* keys;    // [num_positions, head_dim] of dtype
  const void* values;  // likewise
  int32_t dtype;
  int64_t num_positions, head_dim, ld, num_queries;
  const float* queries;  // [num_queries, ld], scaled
  float* scores;         // [num_queries, num_positions], scratch
  float* out;            // [num_queries, ld]: Σ e^(score − largest) · value
  float* largest;        // [num_queries]
  float* sums;           // [num_queries]: Σ e^(score − largest)
};

// Some tokens of the query heads that share a key and value head.
struct ManyQueries {
  const void* queries;  // of dtype: head h's begin h · head_step elements on, [num_tokens, head_dim]
  const void* keys;     // [first_position + num_tokens, head_dim]
  const void* values;   // likewise
  int32_t dtype;
  int64_t head_dim, num_heads, num_tokens, head_step;
  int64_t first_position;  // token i sees keys 0 … first_position + i
};

constexpr int64_t kKeys = 64;  // keys at a time

// Float32. ld is head_dim and num_rows is num_heads · num_tokens, both up to a multiple of 16.
struct AttentionScratch {
  float* queries;  // [ld, num_rows]
  float* keys;     // [kKeys, ld]; also values
  float* scores;   // [kKeys, num_rows]
  float* out;      // [num_rows, ld]: the result, a row a (head, token)
  float* largest;  // [num_rows]
  float* sums;     // [num_rows]
  float* factors;  // [num_rows]
  int64_t ld, num_rows;
};

// Results are float32 [n, ld]; ld and the rows written are padded to a multiple of 16.
struct Kernels {
  const char* name;
  int64_t max_direct_packed;  // up to so many tokens unpacking in registers is faster
  int64_t max_direct_int8;
  // Whether wide_rows wants the codes of its tokens one behind the other, and may read them up to a
  // multiple of kTileTokens.
  bool joined_tokens;

  // One token. Returns false if a value is NaN or infinite; its block is then zeros.
  bool (*quantize)(const float* x, int64_t num_cols, bool split, int8_t* codes, float* scales,
                   int32_t* offsets);
  void (*widen)(const uint16_t* bf16, int64_t n, float* out);
  void (*narrow)(const float* x, int64_t n, uint16_t* bf16);
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  void (*add_scaled)(const float* x, float weight, int64_t n, float* sum);

  void (*packed_rows)(const uint8_t* codes, const uint16_t* absmax, const int8_t* levels,
                      float unit, int64_t num_blocks, int64_t num_groups, const Token* tokens,
                      int64_t n, float* out, int64_t ld);
  void (*int8_rows)(const int8_t* codes, const float* absmax, float unit, int64_t num_cols,
                    int64_t num_rows, const Token* tokens, int64_t n, float* out, int64_t ld);

  // One block of 64 weights to eight words of codes, and its absmax. False if one is not finite.
  bool (*encode_block)(const float* x, const float* bounds, const uint8_t* code_of_rank,
                       uint32_t* words, float* absmax);

  // Unpacks groups of 16 rows to int8 [num_blocks · 16, 16, 4] with float scales [num_blocks, 16].
  void (*expand_packed)(const uint8_t* codes, const uint16_t* absmax, const int8_t* levels,
                        int64_t num_blocks, int64_t num_groups, int8_t* wide, float* scales);
  void (*expand_int8)(const int8_t* codes, const float* absmax, int64_t num_cols, int64_t num_rows,
                      int8_t* wide, float* scales);
  void (*wide_rows)(const int8_t* wide, const float* scales, float unit, int64_t num_blocks,
                    int64_t num_groups, const Token* tokens, int64_t n, float* out, int64_t ld);

  // What a decoded token needs between products; see decoding.h.
  void (*round_bf16)(float* x, int64_t n);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, bool bf16,
                   float* out);
  float (*dot)(const float* x, const float* y, int64_t n);
  void (*attend)(const Attention& attention);

  // Of a prompt; see attention.h. False if a score is not finite.
  bool (*attend_many)(const ManyQueries& queries, const AttentionScratch& scratch);

  uint64_t (*read)(const uint8_t* data, int64_t nbytes);
};

// Null where the compiler or the target has no such instructions.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();
const Kernels* emulated_amx_kernels();  // slow: tests the tiles where there are none
const Kernels* neon_kernels();

}  // namespace native
