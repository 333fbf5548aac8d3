// Products of quantized activations with rows of a weight, shared by matmul and the expert layer.
#pragma once
#include <cstddef>

#include "kernels.h"
#include "native.h"

namespace native {

inline int64_t num_blocks_of(int64_t num_cols) { return (num_cols + kBlock - 1) / kBlock; }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Memory that one job needs and the next one reuses. Only the holder of the pool's guard touches it.
class Arena {
 public:
  ~Arena();
  // Room for `nbytes`, from its start; false if there is none. Contents are lost.
  bool reserve(size_t nbytes);
  // The next piece of what was reserved, on a cache line of its own.
  template <class T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(data_ + used_);
    used_ += piece_nbytes<T>(n);
    return piece;
  }
  template <class T>
  static size_t piece_nbytes(int64_t n) {
    return size_t(round_up(n * int64_t(sizeof(T)), 128));
  }

 private:
  char* data_ = nullptr;
  size_t capacity_ = 0, used_ = 0;
};

// Activations of many tokens, quantized: filled row by row, read through `token`. Behind the codes is
// room to read whole tiles of tokens.
struct Activations {
  int64_t num_cols, num_blocks;
  int8_t* codes;
  float* scales;
  int32_t* offsets;

  static size_t nbytes(int64_t n, int64_t num_cols);
  static Activations take(Arena& arena, int64_t n, int64_t num_cols);
  Token token(int64_t i) const {
    return {codes + i * num_blocks * kBlock, scales + i * num_blocks, offsets + i * num_blocks};
  }
  bool quantize(const Kernels& kernels, const float* x, int64_t i, bool split) const;
};

// What one thread needs to unpack kWideRows rows of a weight with up to `num_cols` columns.
struct Unpacked {
  int8_t* codes;
  float* scales;

  static size_t nbytes(int64_t num_cols);
  static Unpacked take(Arena& arena, int64_t num_cols);
};

// out[m · ld + r] = rows first_row + r of the weight times token m. first_row is a multiple of 16;
// writes up to the next multiple of 16 rows.
void multiply_rows(const Kernels& kernels, const Matrix& weight, int64_t first_row,
                   int64_t num_rows, const Token* tokens, int64_t n, float* out, int64_t ld,
                   const Unpacked& unpacked);

// One row of activations as float32: itself, or widened into `buffer`.
const float* row_as_float(const Kernels& kernels, const void* rows, int32_t dtype, int64_t i,
                          int64_t num_cols, float* buffer);
void store_row(const Kernels& kernels, const float* x, int64_t n, void* out, int32_t dtype,
               int64_t at);

}  // namespace native
