// Quantizing a weight to 4-bit codes, 16 rows a chunk.
#include <atomic>

#include "elementwise.h"
#include "jobs.h"

namespace native {
namespace {

struct EncodeJob {
  const Kernels& kernels;
  const Encoding& encoding;
  std::atomic<bool> finite{true}, fits{true};
};

const float* load_block(const EncodeJob& job, int64_t at, float* buffer) {
  if (job.encoding.dtype == kFloat32) return static_cast<const float*>(job.encoding.weight) + at;
  job.kernels.widen(static_cast<const uint16_t*>(job.encoding.weight) + at, kBlock, buffer);
  return buffer;
}

void encode_chunk(void* context, int64_t group, int) {
  auto& job = *static_cast<EncodeJob*>(context);
  const Encoding& encoding = job.encoding;
  const int64_t blocks = encoding.num_cols / kBlock;
  auto* codes = static_cast<uint32_t*>(encoding.codes) + group * blocks * 8 * kGroup;
  auto* absmax = static_cast<uint16_t*>(encoding.absmax) + group * blocks * kGroup;
  for (int64_t r = 0; r < kGroup; r++) {
    for (int64_t b = 0; b < blocks; b++) {
      float buffer[kBlock], largest;
      uint32_t words[8];
      const int64_t at = (group * kGroup + r) * encoding.num_cols + b * kBlock;
      if (!job.kernels.encode_block(load_block(job, at, buffer), encoding.bounds,
                                    encoding.code_of_rank, words, &largest)) {
        job.finite = false;
      }
      if (largest > 65504.0f) {
        job.fits = false;
        largest = 0;
      }
      for (int64_t t = 0; t < 8; t++) codes[(b * 8 + t) * kGroup + r] = words[t];
      absmax[b * kGroup + r] = float_to_half(largest);
    }
  }
}

}  // namespace

Status run_encoding(const Kernels& kernels, const Encoding& encoding) {
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.guard());
  EncodeJob job{kernels, encoding};
  const Phase phase{encoding.num_rows / kGroup, encode_chunk, &job};
  pool.run(&phase, 1);
  return !job.finite ? kNotFinite : !job.fits ? kTooLarge : kOk;
}

}  // namespace native
