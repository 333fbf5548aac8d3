// Experts for a GPU's token: a thread that answers requests which the GPU writes into host memory.
//
// The GPU and this thread share two blocks of pinned memory. Whoever writes one stores its number
// last, so that a number once seen says that all before it is there.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "jobs.h"

namespace native {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kKeen = std::chrono::milliseconds(5);  // spinning after the last request
constexpr auto kNap = std::chrono::milliseconds(1);   // between looks from then on
constexpr auto kIdle = std::chrono::seconds(1);       // after so long only wake() helps soon
constexpr auto kIdleNap = std::chrono::milliseconds(20);

uint32_t read_number(const uint32_t& number) { return __atomic_load_n(&number, __ATOMIC_ACQUIRE); }

class Server {
 public:
  Server(const Kernels& kernels, const Service& service)
      : kernels_(kernels), service_(service), seen_(read_number(service.request->number)),
        ids_(kMaxAsked), thread_([this] { serve(); }) {}

  ~Server() {
    stop_ = true;
    wake();
    thread_.join();
  }

  void wake() {
    { std::lock_guard<std::mutex> lock(mutex_); }
    woken_.notify_all();
  }

  ServiceUse use() const {
    return {num_requests_, num_experts_, busy_ns_, num_rows_, rows_ns_};
  }

 private:
  bool is_asked() const { return read_number(service_.request->number) != seen_; }

  void serve() {
    auto last = Clock::now();
    while (!stop_) {
      if (is_asked()) {
        answer();
        last = Clock::now();
        continue;
      }
      const auto idle = Clock::now() - last;
      if (idle < kKeen) {
        for (int i = 0; i < 32 && !is_asked(); i++) relax();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      const auto nap = idle < kIdle ? Clock::duration(kNap) : Clock::duration(kIdleNap);
      if (!stop_ && woken_.wait_for(lock, nap) == std::cv_status::no_timeout) last = Clock::now();
    }
  }

  void answer() {
    const auto began = Clock::now();
    const Request& request = *service_.request;
    seen_ = read_number(request.number);
    const bool by_row = request.num_rows != 0;
    Status status = kBadRequest;
    const int32_t layer_idx = request.layer_idx;
    if (layer_idx >= 0 && layer_idx < service_.num_layers && service_.experts[layer_idx]) {
      status = by_row ? run_rows(request) : run_token(request);
    }
    if (status != kOk) fail(status, by_row);
    const int64_t took = std::chrono::nanoseconds(Clock::now() - began).count();
    (by_row ? rows_ns_ : busy_ns_) += took;
    __atomic_store_n(&service_.answer->number, seen_, __ATOMIC_RELEASE);
  }

  uint8_t* out() const { return reinterpret_cast<uint8_t*>(service_.answer) + kVectorOffset; }

  // Says so, and leaves nothing in the answer that was not computed.
  void fail(Status status, bool by_row) {
    service_.answer->status = status;
    if (by_row) {
      std::memset(service_.row_answers, 0,
                  size_t(service_.max_rows * service_.hidden_size) * sizeof(uint16_t));
    } else {
      std::memset(out(), 0, size_t(service_.hidden_size) * sizeof(float));
    }
  }

  bool is_id(int64_t expert_idx) const {
    return expert_idx >= 0 && expert_idx < service_.num_experts;
  }

  bool is_known(int32_t layer_idx, int64_t expert_idx) const {
    return is_id(expert_idx) && service_.experts[layer_idx][expert_idx];
  }

  bool are_known(int32_t layer_idx, int64_t asked) const {
    for (int64_t i = 0; i < asked; i++) {
      if (!is_known(layer_idx, ids_[size_t(i)])) return false;
    }
    return true;
  }

  Status run_token(const Request& request) {
    const int64_t asked = request.num_experts;
    const int32_t layer_idx = request.layer_idx;
    if (asked <= 0 || asked > kMaxAsked) return kBadRequest;
    for (int64_t i = 0; i < asked; i++) {
      ids_[size_t(i)] = request.ids[i];
      if (!is_id(request.ids[i])) return kBadRequest;
    }
    for (int64_t i = 0; i < asked; i++) {
      service_.uses[layer_idx * service_.num_experts + ids_[size_t(i)]] += 1;
    }
    num_requests_ += 1;
    num_experts_ += asked;
    if (!are_known(layer_idx, asked)) {
      if (!service_.fetch) return kBadRequest;
      if (service_.fetch(layer_idx, ids_.data(), asked)) return kNotFetched;
      if (!are_known(layer_idx, asked)) return kBadRequest;
    }
    const void* vector = reinterpret_cast<const uint8_t*>(&request) + kVectorOffset;
    return run(layer_idx, vector, out(), ids_.data(), request.weights, 1, asked, kFloat32);
  }

  Status run_rows(const Request& request) {
    const int64_t num_rows = request.num_rows;
    if (num_rows < 0 || num_rows > service_.max_rows) return kBadRequest;
    for (int64_t i = 0; i < num_rows; i++) {
      if (!is_known(request.layer_idx, service_.row_ids[i])) return kBadRequest;
    }
    num_rows_ += num_rows;
    return run(request.layer_idx, service_.rows, service_.row_answers, service_.row_ids,
               service_.row_weights, num_rows, 1, kBFloat16);
  }

  Status run(int32_t layer_idx, const void* from, void* to, const int64_t* ids,
             const float* weights, int64_t num_tokens, int64_t num_each, DType dtype) {
    const Layer layer{from,
                      to,
                      ids,
                      weights,
                      service_.experts[layer_idx],
                      nullptr,
                      num_tokens,
                      service_.hidden_size,
                      num_each,
                      service_.num_experts,
                      0,
                      dtype,
                      service_.path};
    return run_layer(kernels_, layer);
  }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const Kernels& kernels_;
  const Service service_;
  uint32_t seen_;
  std::vector<int64_t> ids_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> num_requests_{0}, num_experts_{0}, busy_ns_{0}, num_rows_{0}, rows_ns_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace

void* start_server(const Kernels& kernels, const Service& service) {
  try {
    return new Server(kernels, service);
  } catch (...) {  // no memory or no thread
    return nullptr;
  }
}

void wake_server(void* server) { static_cast<Server*>(server)->wake(); }

ServiceUse server_use(void* server) { return static_cast<Server*>(server)->use(); }

void stop_server(void* server) { delete static_cast<Server*>(server); }

}  // namespace native
