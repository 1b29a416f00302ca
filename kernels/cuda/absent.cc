// The CUDA backend of a build without CUDA.
#include "kernels/device.h"

namespace kvasir {

StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int /*index*/) {
  return Unavailable(
      "this build has no CUDA backend; build with -DKVASIR_CUDA=ON where nvcc 12.4 or newer is (preset cuda), or use --device "
      "cpu");
}

bool HasCudaDevice() {
  return false;
}

}  // namespace kvasir
