// See products.h.
#include "products.h"

#include <cstdlib>
#include <cstring>

namespace native {

Arena::~Arena() { std::free(data_); }

bool Arena::reserve(size_t nbytes) {
  used_ = 0;
  if (nbytes <= capacity_) return true;
  std::free(data_);
  capacity_ = size_t(round_up(int64_t(nbytes), 4096));
  data_ = static_cast<char*>(std::aligned_alloc(128, capacity_));
  if (!data_) capacity_ = 0;
  return data_ != nullptr;
}

size_t Activations::nbytes(int64_t n, int64_t num_cols) {
  const int64_t blocks = num_blocks_of(num_cols);
  return Arena::piece_nbytes<int8_t>((n + kTileTokens - 1) * blocks * kBlock) +
         Arena::piece_nbytes<float>(n * blocks) + Arena::piece_nbytes<int32_t>(n * blocks);
}

Activations Activations::take(Arena& arena, int64_t n, int64_t num_cols) {
  const int64_t blocks = num_blocks_of(num_cols);
  int8_t* codes = arena.take<int8_t>((n + kTileTokens - 1) * blocks * kBlock);
  float* scales = arena.take<float>(n * blocks);
  return {num_cols, blocks, codes, scales, arena.take<int32_t>(n * blocks)};
}

bool Activations::quantize(const Kernels& kernels, const float* x, int64_t i, bool split) const {
  return kernels.quantize(x, num_cols, split, codes + i * num_blocks * kBlock,
                          scales + i * num_blocks, offsets + i * num_blocks);
}

size_t Unpacked::nbytes(int64_t num_cols) {
  const int64_t blocks = num_blocks_of(num_cols);
  return Arena::piece_nbytes<int8_t>(kWideRows * blocks * kBlock) +
         Arena::piece_nbytes<float>(kWideRows * blocks);
}

Unpacked Unpacked::take(Arena& arena, int64_t num_cols) {
  const int64_t blocks = num_blocks_of(num_cols);
  int8_t* codes = arena.take<int8_t>(kWideRows * blocks * kBlock);
  return {codes, arena.take<float>(kWideRows * blocks)};
}

namespace {

void multiply_packed(const Kernels& kernels, const Matrix& weight, int64_t first_row,
                     int64_t num_rows, const Token* tokens, int64_t n, float* out, int64_t ld,
                     const Unpacked& unpacked) {
  const int64_t blocks = weight.num_cols / kBlock;
  const int64_t first_group = first_row / kGroup, num_groups = num_rows / kGroup;
  const auto* codes = static_cast<const uint8_t*>(weight.codes) + first_group * blocks * 512;
  const auto* absmax = static_cast<const uint16_t*>(weight.absmax) + first_group * blocks * kGroup;
  if (n <= kernels.max_direct_packed) {
    kernels.packed_rows(codes, absmax, weight.levels, weight.unit, blocks, num_groups, tokens, n,
                        out, ld);
    return;
  }
  for (int64_t g = 0; g < num_groups; g += kWideRows / kGroup) {
    const int64_t here = num_groups - g < kWideRows / kGroup ? num_groups - g : kWideRows / kGroup;
    kernels.expand_packed(codes + g * blocks * 512, absmax + g * blocks * kGroup, weight.levels,
                          blocks, here, unpacked.codes, unpacked.scales);
    kernels.wide_rows(unpacked.codes, unpacked.scales, weight.unit, blocks, here, tokens, n,
                      out + g * kGroup, ld);
  }
}

void multiply_int8(const Kernels& kernels, const Matrix& weight, int64_t first_row,
                   int64_t num_rows, const Token* tokens, int64_t n, float* out, int64_t ld,
                   const Unpacked& unpacked) {
  const auto* codes = static_cast<const int8_t*>(weight.codes) + first_row * weight.num_cols;
  const auto* absmax = static_cast<const float*>(weight.absmax) + first_row;
  if (n <= kernels.max_direct_int8) {
    kernels.int8_rows(codes, absmax, weight.unit, weight.num_cols, num_rows, tokens, n, out, ld);
    return;
  }
  const int64_t blocks = num_blocks_of(weight.num_cols);
  for (int64_t r = 0; r < num_rows; r += kWideRows) {
    const int64_t here = num_rows - r < kWideRows ? num_rows - r : kWideRows;
    kernels.expand_int8(codes + r * weight.num_cols, absmax + r, weight.num_cols, here,
                        unpacked.codes, unpacked.scales);
    kernels.wide_rows(unpacked.codes, unpacked.scales, weight.unit, blocks,
                      (here + kGroup - 1) / kGroup, tokens, n, out + r, ld);
  }
}

}  // namespace

void multiply_rows(const Kernels& kernels, const Matrix& weight, int64_t first_row,
                   int64_t num_rows, const Token* tokens, int64_t n, float* out, int64_t ld,
                   const Unpacked& unpacked) {
  const auto multiply = weight.kind == kCodebook ? multiply_packed : multiply_int8;
  multiply(kernels, weight, first_row, num_rows, tokens, n, out, ld, unpacked);
}

const float* row_as_float(const Kernels& kernels, const void* rows, int32_t dtype, int64_t i,
                          int64_t num_cols, float* buffer) {
  if (dtype == kFloat32) return static_cast<const float*>(rows) + i * num_cols;
  kernels.widen(static_cast<const uint16_t*>(rows) + i * num_cols, num_cols, buffer);
  return buffer;
}

void store_row(const Kernels& kernels, const float* x, int64_t n, void* out, int32_t dtype,
               int64_t at) {
  if (dtype == kFloat32) {
    std::memcpy(static_cast<float*>(out) + at, x, size_t(n) * sizeof(float));
  } else {
    kernels.narrow(x, n, static_cast<uint16_t*>(out) + at);
  }
}

}  // namespace native
