// A GPU on the host, for tests: the threads of a block are fibers on the calling thread, blocks run one after another. Kernels of
// kernels/cuda are compiled against tests/simt/include and hardware.h and started by Launch. What the emulation checks:
//  * a barrier or a warp-wide function that not all threads reach, or reach at different places, ends the program with a message,
//  * shared memory starts as NaN in every block, is as long as the launch says, and its bounds are checked under ASan,
//  * device memory can only be touched while a kernel or a copy of the runtime runs: the host that reads it crashes,
//  * the order of blocks and of warps, and whether an asynchronous copy or product is done at once or when it is waited for,
//  follow
//    Seed(): a result must not depend on them.
// Not emulated: memory that other threads see late (a missing barrier shows only when the order of warps makes it matter).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "tests/simt/include/cuda_runtime.h"

namespace kvasir::simt {

// Orders of what runs; 0 = as numbered, copies when waited for.
void Seed(uint64_t seed);

// Runs `body` on every thread of every block. Returns when all are done.
void Run(dim3 grid, int block, size_t shared, const std::function<void()>& body);

struct Place {
  dim3 thread, block, block_dim, grid_dim;
};
const Place& Here();  // of the running fiber

unsigned char* SharedMemory();
size_t SharedBytes();

// All lanes of the warp meet; the last one calls combine(mine of every lane, in order, their number), then all go on.
using Combine = void (*)(void* const* mine, int lanes);
void MeetWarp(const char* what, void* mine, Combine combine);
// The same for the 128 threads of a warpgroup.
void MeetGroup(const char* what, void* mine, Combine combine);
void MeetBlock();
// So many threads of the block, at a barrier with that number (bar.sync).
void MeetNumbered(int number, int threads);

// Of the thread's kernel, for the one before it; a thread that ends without ends the program.
void WaitForPrevious();

// cp.async of the running fiber.
void CopyLater(void* to, const void* from, size_t bytes, bool valid);
void CloseCopies();
void FinishCopies(int pending);

// Barriers in shared memory (mbarrier), at `barrier`. A phase ends when as many arrivals as it was made for have come and all
// bytes expected by them have landed.
void BarrierMake(void* barrier, int arrivals);
void BarrierArrive(void* barrier, int bytes);
void BarrierWait(void* barrier, int parity);  // for the end of the phase of that parity
// Bulk copies, which land before somebody has waited for the barrier: pieces from `from` to `to`.
struct Piece {
  void* to;
  const void* from;
  size_t bytes;
};
void CopyBulkLater(void* barrier, std::vector<Piece> pieces);

// Asynchronous products (wgmma) of the running fiber.
void MultiplyLater(std::function<void()> product);
void CloseProducts();
void FinishProducts(int pending);
int64_t ProductsStarted();  // ever

// The runtime's device memory. Touchable while `open` is above zero.
void* DeviceAllocate(size_t bytes);                 // nullptr when there is no more
bool DeviceFree(void* pointer);                     // false: not one of ours
void DeviceSet(void* to, int value, size_t bytes);  // memset
size_t DeviceBytesInUse();
class OpenDeviceMemory {
 public:
  OpenDeviceMemory();
  ~OpenDeviceMemory();
};

}  // namespace kvasir::simt
