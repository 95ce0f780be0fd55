// Which lightning kernels the current device takes, and how many blocks fill it.

#include <cuda_runtime.h>

#include "kernels/lightning/launch.h"

namespace sala {

LightningArch lightning_arch() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    return LightningArch::kNone;
  }
#ifdef SALA_HAS_SM90A  // this build has sm_90a code, and such a device loads it
  if (major == 9) return LightningArch::kHopper;
#endif
  return major >= 8 ? LightningArch::kAmpere : LightningArch::kNone;
}

int lightning_num_ranges(int64_t num_tiles, int64_t head_size) {
  int device = 0, num_sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t num_blocks = int64_t{num_sms} * lightning_blocks_per_sm(head_size);
  return static_cast<int>(num_tiles < num_blocks ? num_tiles : num_blocks);
}

}  // namespace sala
