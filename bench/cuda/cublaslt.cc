// cuBLASLt as a peer of the CUDA backend's products. It is opened when it is wanted: nothing else needs it to be there.
#include "bench/cuda/ceilings.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <vector>

#include "kernels/rng.h"
#include "kernels/tensor.h"

namespace kvasir {
namespace {

// The functions used, under their own names and types.
struct Library {
  void* handle = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
};

template <typename F>
bool Find(void* handle, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(handle, name));
  return function != nullptr;
}

const Library* TheLibrary() {
  static const Library library = [] {
    Library l;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.13"}) {
      if (l.handle == nullptr) l.handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (l.handle == nullptr) return l;
    const bool all = Find(l.handle, "cublasLtCreate", l.create) && Find(l.handle, "cublasLtDestroy", l.destroy) &&
                     Find(l.handle, "cublasLtMatmul", l.matmul) &&
                     Find(l.handle, "cublasLtMatmulAlgoGetHeuristic", l.heuristic) &&
                     Find(l.handle, "cublasLtMatmulDescCreate", l.desc_create) &&
                     Find(l.handle, "cublasLtMatmulDescDestroy", l.desc_destroy) &&
                     Find(l.handle, "cublasLtMatmulDescSetAttribute", l.desc_set) &&
                     Find(l.handle, "cublasLtMatrixLayoutCreate", l.layout_create) &&
                     Find(l.handle, "cublasLtMatrixLayoutDestroy", l.layout_destroy) &&
                     Find(l.handle, "cublasLtMatmulPreferenceCreate", l.preference_create) &&
                     Find(l.handle, "cublasLtMatmulPreferenceDestroy", l.preference_destroy) &&
                     Find(l.handle, "cublasLtMatmulPreferenceSetAttribute", l.preference_set);
    if (!all) l.handle = nullptr;
    return l;
  }();
  return library.handle != nullptr ? &library : nullptr;
}

struct DeviceBytes {
  explicit DeviceBytes(size_t bytes) { ok = cudaMalloc(&data, bytes) == cudaSuccess; }
  ~DeviceBytes() { cudaFree(data); }
  void* data = nullptr;
  bool ok = false;
};

}  // namespace

StatusOr<double> MeasureCublasLt(int rows, int64_t outs, int64_t cols) {
  const Library* lt = TheLibrary();
  if (lt == nullptr) return Unavailable("libcublasLt is not here");
  // Weights of several copies, so that each comes from memory: the L2 cache of an H200 holds 50 MB.
  const size_t weight_bytes = size_t(outs * cols) * 2;
  const int copies = int(std::max<size_t>(1, (size_t{256} << 20) / weight_bytes));
  constexpr size_t kWorkspace = size_t{64} << 20;
  DeviceBytes weights(weight_bytes * copies), in(size_t(rows * cols) * 2), out(size_t(rows * outs) * 4), workspace(kWorkspace);
  if (!weights.ok || !in.ok || !out.ok || !workspace.ok) return ResourceExhausted("no device memory for {} x {}", outs, cols);
  // Random values: a chip computes with zeros at a higher clock.
  Rng rng(7);
  std::vector<uint16_t> values(size_t{1} << 20);
  for (uint16_t& v : values) v = F32ToBF16(float(rng.Uniform()) - 0.5f);
  const auto fill = [&](const DeviceBytes& to, size_t bytes) {
    for (size_t at = 0; at < bytes; at += values.size() * 2)
      cudaMemcpy(static_cast<char*>(to.data) + at, values.data(), std::min(values.size() * 2, bytes - at),
                 cudaMemcpyHostToDevice);
  };
  fill(weights, weight_bytes * copies);
  fill(in, size_t(rows * cols) * 2);

  cublasLtHandle_t handle;
  if (lt->create(&handle) != CUBLAS_STATUS_SUCCESS) return Unavailable("cuBLASLt cannot be started");
  // Column-major as the library thinks: out^T [outs, rows] = weights [outs, cols] * in^T, weights given transposed.
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, c;
  cublasLtMatmulPreference_t preference;
  lt->desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  lt->desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
  lt->layout_create(&a, CUDA_R_16BF, uint64_t(cols), uint64_t(outs), cols);
  lt->layout_create(&b, CUDA_R_16BF, uint64_t(cols), uint64_t(rows), cols);
  lt->layout_create(&c, CUDA_R_32F, uint64_t(outs), uint64_t(rows), outs);
  lt->preference_create(&preference);
  lt->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof kWorkspace);
  constexpr int kAlgorithms = 16;
  cublasLtMatmulHeuristicResult_t found[kAlgorithms];
  int count = 0;
  lt->heuristic(handle, desc, a, b, c, c, preference, kAlgorithms, found, &count);
  double best = 1e9;
  const float one = 1, zero = 0;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  for (int i = 0; i < count; ++i) {
    constexpr int kRuns = 20;
    bool ok = true;
    for (int run = -2; run < kRuns && ok; ++run) {
      if (run == 0) cudaEventRecord(begin);
      const char* weight = static_cast<const char*>(weights.data) + weight_bytes * size_t((run + 2) % copies);
      ok = lt->matmul(handle, desc, &one, weight, a, in.data, b, &zero, out.data, c, out.data, c, &found[i].algo, workspace.data,
                      kWorkspace, nullptr) == CUBLAS_STATUS_SUCCESS;
    }
    cudaEventRecord(end);
    if (!ok || cudaEventSynchronize(end) != cudaSuccess) continue;
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    best = std::min(best, double(milliseconds) * 1e-3 / kRuns);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  lt->preference_destroy(preference);
  lt->layout_destroy(a), lt->layout_destroy(b), lt->layout_destroy(c);
  lt->desc_destroy(desc);
  lt->destroy(handle);
  if (best >= 1e9) return Unavailable("cuBLASLt has no algorithm for {} rows of {} x {}", rows, outs, cols);
  return best;
}

}  // namespace kvasir

#else

namespace kvasir {
StatusOr<double> MeasureCublasLt(int, int64_t, int64_t) {
  return Unavailable("built without cublasLt.h");
}
}  // namespace kvasir

#endif
