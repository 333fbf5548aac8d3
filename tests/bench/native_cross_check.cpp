// Holds every instruction set of the native kernels to the portable one, without Python or torch:
// for CPUs that only an emulator has. Prints the largest relative difference of each, and fails
// above 1e-5 (the integer sums are equal, only float32 additions differ). For 64-bit ARM, with
// $DIR some folder:
//   python -c 'import pathlib, sys; from quant.kernels.native.build import compile_library as c;
//     c(pathlib.Path(sys.argv[1]), ["aarch64-linux-gnu-g++"], "aarch64")' $DIR/_native.so
//   aarch64-linux-gnu-g++ -std=c++17 -I quant/kernels/native/src tests/bench/native_cross_check.cpp
//     $DIR/_native.so -o $DIR/cross_check -Wl,-rpath,$DIR
//   qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max $DIR/cross_check          (neon and portable)
//   qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu cortex-a53 $DIR/cross_check   (portable only)
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "native.h"

extern "C" {
const char* native_path_name(int32_t path);
void native_set_num_threads(int32_t num_threads);
int32_t native_matmul(int32_t path, const Matrix* weight, const void* hidden_states, int32_t dtype,
                      int64_t num_tokens, void* out);
int32_t native_layer(const Layer* layer);
int32_t native_attend(const Attend* call);
int32_t native_encode(const Encoding* encoding);
}

namespace {

uint64_t state = 88172645463325252ull;

uint64_t random_bits() {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

float random_float() { return float(int32_t(random_bits() >> 32)) / 2147483648.0f; }

// A weight and what it points to.
struct Weight {
  std::vector<int32_t> codes;
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  Matrix matrix;

  Weight(bool is_int8, int64_t rows, int64_t cols)
      : codes(size_t(rows * cols / (is_int8 ? 4 : 8) + 1)),
        halves(size_t(rows * cols / 64 + 1)),
        floats(size_t(rows)) {
    for (auto& word : codes) word = int32_t(random_bits());
    if (is_int8) {  // the format has no −128
      auto* bytes = reinterpret_cast<int8_t*>(codes.data());
      for (int64_t i = 0; i < rows * cols; i++) bytes[i] = bytes[i] == -128 ? 0 : bytes[i];
    }
    for (auto& half : halves) half = uint16_t(0x2400 + random_bits() % 0x800);
    for (auto& scale : floats) scale = 1.5f + random_float();
    const void* absmax = is_int8 ? static_cast<const void*>(floats.data()) : halves.data();
    matrix = {codes.data(), absmax, rows, cols, is_int8 ? kInt8 : kCodebook, 1 / 127.0f, {}};
    const int8_t levels[16] = {-127, -88, -67, -50, -36, -23, -12, 0,
                               10,   20,  31,  43,  56,  71,  92,  127};
    std::memcpy(matrix.levels, levels, 16);
  }
};

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++) {
    error += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    size += double(b[i]) * b[i];
  }
  return std::sqrt(error / size);
}

std::vector<float> product(int path, const Weight& weight, const std::vector<float>& x, int64_t n) {
  std::vector<float> out(size_t(n * weight.matrix.num_rows), NAN);
  if (native_matmul(path, &weight.matrix, x.data(), kFloat32, n, out.data())) out.assign(1, NAN);
  return out;
}

std::vector<float> layer_of(int path, const Expert* const* experts, const std::vector<float>& x,
                            int64_t n, int64_t hidden_size) {
  std::vector<float> out(x.size(), NAN), weights(size_t(2 * n), 0.5f);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < n; i++) {
    ids.push_back(i % 3);
    ids.push_back((i + 1) % 3);
  }
  const Layer layer{x.data(), out.data(), ids.data(), weights.data(), experts, experts, n,
                    hidden_size, 2, 3, 1, kFloat32, path};
  if (native_layer(&layer)) out.assign(1, NAN);
  return out;
}

bool same_codes(int path, int reference) {
  std::vector<float> weight(64 * 256);
  for (auto& value : weight) value = random_float();
  std::vector<int32_t> codes[2];
  std::vector<uint16_t> absmax[2];
  for (int i = 0; i < 2; i++) {
    codes[i].resize(64 * 256 / 8);
    absmax[i].resize(64 * 256 / 64);
    Encoding encoding{weight.data(), codes[i].data(), absmax[i].data(), 64, 256, kFloat32,
                      i ? reference : path, {}, {}};
    for (int b = 0; b < 16; b++) {
      encoding.bounds[b] = float(b - 7) / 8;
      encoding.code_of_rank[b] = uint8_t(b);
    }
    if (native_encode(&encoding)) return false;
  }
  return codes[0] == codes[1] && absmax[0] == absmax[1];
}

std::vector<float> attended(int path, const std::vector<float>& qkv, int64_t tokens, int64_t held,
                            int64_t head_dim) {
  std::vector<float> out(size_t(4 * tokens * head_dim), NAN);
  const float* keys = qkv.data() + 4 * tokens * head_dim;
  const Attend call{qkv.data(), keys, keys + 2 * held * head_dim, out.data(), 4, 2, head_dim,
                    tokens, held, held * head_dim, kFloat32, path};
  if (native_attend(&call)) out.assign(1, NAN);
  return out;
}

double check(int path, int reference) {
  double worst = same_codes(path, reference) ? 0 : 1;
  for (int64_t tokens : {1, 17, 70}) {
    const int64_t held = tokens + 65, head_dim = 40;
    std::vector<float> qkv(size_t(4 * (tokens + held) * head_dim));
    for (auto& value : qkv) value = random_float();
    worst = std::fmax(worst, difference(attended(path, qkv, tokens, held, head_dim),
                                        attended(reference, qkv, tokens, held, head_dim)));
  }
  for (bool is_int8 : {false, true}) {
    for (int64_t n : {1, 2, 3, 4, 7, 8, 9, 20}) {
      const int64_t rows = is_int8 ? 83 : 96, cols = is_int8 ? 201 : 320;
      const Weight weight(is_int8, rows, cols);
      std::vector<float> x(size_t(n * cols));
      for (auto& value : x) value = random_float();
      worst = std::fmax(worst, difference(product(path, weight, x, n),
                                          product(reference, weight, x, n)));
      const Weight gate_up(is_int8, 256, 192), down(is_int8, 192, 128);
      const Expert expert{gate_up.matrix, down.matrix};
      const Expert* experts[] = {&expert, &expert, &expert};
      std::vector<float> hidden_states(size_t(n * 192));
      for (auto& value : hidden_states) value = random_float() * 0.1f;
      // A last bit that differs may move an intermediate activation by one of its 127 steps.
      const double layer = difference(layer_of(path, experts, hidden_states, n, 192),
                                      layer_of(reference, experts, hidden_states, n, 192));
      worst = std::fmax(worst, layer < 3e-3 ? 0 : layer);
      if (std::isnan(layer)) worst = NAN;
    }
  }
  return worst;
}

}  // namespace

int main() {
  native_set_num_threads(3);
  int reference = 0, num_paths = 0;
  for (; native_path_name(num_paths); num_paths++) {
    if (!std::strcmp(native_path_name(num_paths), "portable")) reference = num_paths;
  }
  bool good = true;
  for (int path = 0; path < num_paths; path++) {
    const double worst = check(path, reference);
    std::printf("%-10s %.2e\n", native_path_name(path), worst);
    good &= worst < 1e-5;
  }
  return good ? 0 : 1;
}
