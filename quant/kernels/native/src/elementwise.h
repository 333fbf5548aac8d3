// Loops over plain floats, written so that the compiler vectorizes them in each translation unit.
//
// Everything here is in an unnamed namespace on purpose: a shared inline function compiled with
// AVX-512 could be the copy that the linker keeps for every caller, and crash older CPUs.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace native {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Exact for every finite half, subnormal ones included: the multiplication moves the exponent.
inline float half_to_float(uint16_t half) {
  const float magnitude = float_of(uint32_t(half & 0x7fff) << 13) * 0x1p112f;
  return half & 0x8000 ? -magnitude : magnitude;
}

// Rounds half to even. For x in [0, 65504].
inline uint16_t float_to_half(float x) {
  const uint32_t bits = bits_of(x);
  if (bits < 0x38800000u) {  // below 2^-14: adding 0.5 shifts a subnormal half into place
    return uint16_t(bits_of(x + 0.5f) - 0x3f000000u);
  }
  return uint16_t((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13);
}

// Round half to even for |x| < 2^22: adding 1.5 · 2^23 leaves no bits for a fraction.
constexpr float kRound = 12582912.0f;

inline void quantize_block(const float* x, bool split, bool* finite, int8_t* codes, float* scale,
                           int32_t* offset) {
  uint32_t largest = 0;  // magnitudes compare like their bits, and NaN is larger than all
  for (int i = 0; i < kBlock; i++) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= 0x7f800000u) {
    *finite = false;
    std::memset(codes, 0, kBlock);
    *scale = 0;
    *offset = 0;
    return;
  }
  // Below 2^-100 the reciprocal would overflow, and the products are nothing anyway.
  const float absmax = float_of(largest);
  const float inverse = absmax > 0x1p-100f ? 127.0f / absmax : 0.0f;
  alignas(64) int8_t plain[kBlock];
  int32_t sum = 0;
  for (int i = 0; i < kBlock; i++) {
    const float rounded = (x[i] * inverse + kRound) - kRound;
    const int32_t code = int32_t(rounded);
    sum += code;
    plain[i] = int8_t(code);
  }
  *scale = absmax / 127.0f;
  *offset = -128 * sum;
  if (!split) {
    std::memcpy(codes, plain, kBlock);
    return;
  }
  for (int t = 0; t < 8; t++) {
    for (int i = 0; i < 4; i++) {
      codes[8 * t + i] = plain[8 * t + 2 * i];
      codes[8 * t + 4 + i] = plain[8 * t + 2 * i + 1];
    }
  }
}

bool quantize(const float* x, int64_t num_cols, bool split, int8_t* codes, float* scales,
              int32_t* offsets) {
  bool finite = true;
  const int64_t whole = num_cols / kBlock;
  for (int64_t b = 0; b < whole; b++) {
    quantize_block(x + b * kBlock, split, &finite, codes + b * kBlock, scales + b, offsets + b);
  }
  if (whole * kBlock < num_cols) {
    float tail[kBlock] = {};
    std::memcpy(tail, x + whole * kBlock, size_t(num_cols - whole * kBlock) * sizeof(float));
    quantize_block(tail, split, &finite, codes + whole * kBlock, scales + whole, offsets + whole);
  }
  return finite;
}

void widen(const uint16_t* bf16, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = float_of(uint32_t(bf16[i]) << 16);
}

void narrow(const float* x, int64_t n, uint16_t* bf16) {
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = bits_of(x[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    // Rounding could carry a NaN's payload into the sign.
    bf16[i] = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

// e^x to 2 ulp. Source: Cephes expf, its polynomial and its two-part ln 2.
inline float exp_approx(float x) {
  x = x > -87.0f ? x : -87.0f;
  x = x < 87.0f ? x : 87.0f;
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * float_of(uint32_t(int32_t(n) + 127) << 23);
}

// Source: torch.bucketize: the rank is the number of bounds below the value. Bit-equal to
// quant.formats.codebook.Codebook4.encode, and so to bitsandbytes.
bool encode_block(const float* x, const float* bounds, const uint8_t* code_of_rank,
                  uint32_t* words, float* absmax) {
  uint32_t largest = 0;
  for (int i = 0; i < kBlock; i++) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  *absmax = largest >= 0x7f800000u ? 0.0f : float_of(largest);
  const float inverse = 1.0f / (*absmax > 1e-38f ? *absmax : 1e-38f);
  int32_t ranks[kBlock] = {};
  float scaled[kBlock];
  for (int i = 0; i < kBlock; i++) scaled[i] = x[i] * inverse;
  for (int bound = 0; bound < 15; bound++) {
    for (int i = 0; i < kBlock; i++) ranks[i] += scaled[i] > bounds[bound];
  }
  for (int t = 0; t < 8; t++) {
    uint32_t word = 0;
    for (int j = 0; j < 8; j++) word |= uint32_t(code_of_rank[ranks[8 * t + j]]) << (4 * j);
    words[t] = word;
  }
  return largest < 0x7f800000u;
}

void swiglu(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + exp_approx(-gate[i])) * up[i];
}

void add_scaled(const float* x, float weight, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += x[i] * weight;
}

// Reads every word once; the sum keeps the compiler from leaving the reads out.
uint64_t read_words(const uint8_t* data, int64_t nbytes) {
  uint64_t sums[16] = {};
  for (int64_t i = 0; i + 128 <= nbytes; i += 128) {
    uint64_t words[16];
    std::memcpy(words, data + i, 128);
    for (int j = 0; j < 16; j++) sums[j] ^= words[j];
  }
  uint64_t sum = 0;
  for (uint64_t part : sums) sum ^= part;
  return sum;
}

}  // namespace
}  // namespace native
