// The products in AVX-512 with VNNI.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "avx512.h"

namespace native {
const Kernels* avx512_kernels() { return table<Avx512<128>>(); }
}  // namespace native
#else
#include "kernels.h"

namespace native {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace native
#endif
