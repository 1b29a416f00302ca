#include "bench/cuda/ceilings.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

namespace kvasir {
namespace {

Status Error(cudaError_t error, const char* what) {
  return error == cudaSuccess ? OkStatus() : Internal("{}: {}", what, cudaGetErrorString(error));
}

struct Buffer {
  ~Buffer() { pinned ? cudaFreeHost(data) : cudaFree(data); }
  void* data = nullptr;
  bool pinned = false;
};
Status Make(Buffer& buffer, size_t bytes, bool pinned = false) {
  buffer.pinned = pinned;
  return Error(pinned ? cudaHostAlloc(&buffer.data, bytes, cudaHostAllocDefault) : cudaMalloc(&buffer.data, bytes), "memory");
}

// Seconds of one of `count` repetitions of work(), which enqueues on the default stream.
template <typename Work>
StatusOr<double> Time(int count, Work work) {
  cudaEvent_t begin, end;
  KVASIR_RETURN_IF_ERROR(Error(cudaEventCreate(&begin), "event"));
  KVASIR_RETURN_IF_ERROR(Error(cudaEventCreate(&end), "event"));
  work();
  cudaEventRecord(begin);
  for (int i = 0; i < count; ++i) work();
  cudaEventRecord(end);
  const cudaError_t error = cudaEventSynchronize(end);
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  KVASIR_RETURN_IF_ERROR(Error(error != cudaSuccess ? error : cudaGetLastError(), "timing"));
  return double(milliseconds) * 1e-3 / count;
}

__global__ void ReadAll(const uint4* data, int64_t count, uint32_t* out) {
  uint32_t sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const uint4 v = __ldcs(data + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678) *out = sum;  // never; but the reads must be done
}

__global__ void Nothing(int* out) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  if (out != nullptr) *out = 1;
}

}  // namespace

StatusOr<CudaCeilings> MeasureCudaCeilings() {
  constexpr size_t kBytes = size_t{4} << 30;
  CudaCeilings ceilings;
  Buffer from, to;
  KVASIR_RETURN_IF_ERROR(Make(from, kBytes));
  KVASIR_RETURN_IF_ERROR(Make(to, kBytes));
  cudaMemset(from.data, 1, kBytes);
  cudaDeviceProp properties;
  KVASIR_RETURN_IF_ERROR(Error(cudaGetDeviceProperties(&properties, 0), "properties"));
  for (const int blocks_each : {4, 8, 16}) {  // which is best differs with the chip
    KVASIR_ASSIGN_OR_RETURN(const double seconds, Time(5, [&] {
                              ReadAll<<<properties.multiProcessorCount * blocks_each, 512>>>(
                                  static_cast<const uint4*>(from.data), int64_t(kBytes / 16), static_cast<uint32_t*>(to.data));
                            }));
    ceilings.read_bytes_per_second = std::max(ceilings.read_bytes_per_second, kBytes / seconds);
  }
  KVASIR_ASSIGN_OR_RETURN(const double seconds,
                          Time(5, [&] { cudaMemcpyAsync(to.data, from.data, kBytes, cudaMemcpyDeviceToDevice); }));
  ceilings.copy_bytes_per_second = 2.0 * kBytes / seconds;
  constexpr int64_t kSide = 8192;
  if (const StatusOr<double> gemm = MeasureCublasLt(kSide, kSide, kSide); gemm.ok())
    ceilings.gemm_bf16_flops = 2.0 * kSide * kSide * kSide / *gemm;
  return ceilings;
}

StatusOr<double> MeasureLink(LinkDirection direction, size_t bytes) {
  constexpr size_t kTotal = size_t{512} << 20;
  Buffer host_in, host_out, device_in, device_out;
  KVASIR_RETURN_IF_ERROR(Make(host_in, kTotal, true));
  KVASIR_RETURN_IF_ERROR(Make(host_out, kTotal, true));
  KVASIR_RETURN_IF_ERROR(Make(device_in, kTotal));
  KVASIR_RETURN_IF_ERROR(Make(device_out, kTotal));
  cudaStream_t down, up;
  KVASIR_RETURN_IF_ERROR(Error(cudaStreamCreateWithFlags(&down, cudaStreamNonBlocking), "stream"));
  KVASIR_RETURN_IF_ERROR(Error(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking), "stream"));
  const bool to_device = direction != LinkDirection::kToHost, to_host = direction != LinkDirection::kToDevice;
  const size_t count = std::min<size_t>(kTotal / bytes, 4096), moved = count * bytes;
  double best = 0;
  for (int repetition = 0; repetition < 4; ++repetition) {  // the first warms up
    cudaEvent_t begin, end_down, end_up;
    cudaEventCreate(&begin), cudaEventCreate(&end_down), cudaEventCreate(&end_up);
    cudaDeviceSynchronize();
    cudaEventRecord(begin, down);
    cudaStreamWaitEvent(up, begin);
    for (size_t i = 0; i < count; ++i) {
      const size_t at = i * bytes;
      if (to_device)
        cudaMemcpyAsync(static_cast<char*>(device_in.data) + at, static_cast<char*>(host_in.data) + at, bytes,
                        cudaMemcpyHostToDevice, down);
      if (to_host)
        cudaMemcpyAsync(static_cast<char*>(host_out.data) + at, static_cast<char*>(device_out.data) + at, bytes,
                        cudaMemcpyDeviceToHost, up);
    }
    cudaEventRecord(end_down, down);
    cudaEventRecord(end_up, up);
    KVASIR_RETURN_IF_ERROR(Error(cudaDeviceSynchronize(), "copies"));
    float a = 0, b = 0;
    cudaEventElapsedTime(&a, begin, end_down), cudaEventElapsedTime(&b, begin, end_up);
    const double seconds = 1e-3 * std::max(to_device ? a : 0, to_host ? b : 0);
    if (repetition > 0) best = std::max(best, double(moved) * (int(to_device) + int(to_host)) / seconds);
    cudaEventDestroy(begin), cudaEventDestroy(end_down), cudaEventDestroy(end_up);
  }
  cudaStreamDestroy(down);
  cudaStreamDestroy(up);
  return best;
}

StatusOr<double> MeasureGraphGap(bool programmatic) {
  constexpr int kNodes = 1000;
  cudaStream_t stream;
  KVASIR_RETURN_IF_ERROR(Error(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream"));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  KVASIR_RETURN_IF_ERROR(Error(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture"));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = programmatic ? 1 : 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  for (int i = 0; i < kNodes; ++i) cudaLaunchKernelEx(&config, Nothing, static_cast<int*>(nullptr));
  KVASIR_RETURN_IF_ERROR(Error(cudaStreamEndCapture(stream, &graph), "capture"));
  KVASIR_RETURN_IF_ERROR(Error(cudaGraphInstantiate(&exec, graph, 0), "graph"));
  double best = 1;
  for (int repetition = 0; repetition < 5; ++repetition) {
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    cudaEventRecord(begin, stream);
    cudaGraphLaunch(exec, stream);
    cudaEventRecord(end, stream);
    KVASIR_RETURN_IF_ERROR(Error(cudaEventSynchronize(end), "graph"));
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    best = std::min(best, double(milliseconds) * 1e-3 / kNodes);
    cudaEventDestroy(begin), cudaEventDestroy(end);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return best;
}

}  // namespace kvasir
