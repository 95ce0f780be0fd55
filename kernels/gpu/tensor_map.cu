// The encoder is a driver function; it is looked up through the runtime, so that nothing links the
// driver library and programs start on machines without one.

#include "kernels/gpu/tensor_map.h"

#include <cuda_runtime.h>

namespace sala {
namespace {

constexpr uint32_t kTileColumns = 64;

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

int make_tile_map(CUtensorMap* map, const void* data, int64_t T, int64_t NH, int64_t HS,
                  int box_tokens, int box_heads) {
  static const Encode encode = find_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(HS), static_cast<cuuint64_t>(NH),
                              static_cast<cuuint64_t>(T)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(HS * 2),
                                static_cast<cuuint64_t>(NH * HS * 2)};  // bytes, of axes 1 and 2
  const cuuint32_t box[] = {kTileColumns, static_cast<cuuint32_t>(box_heads),
                            static_cast<cuuint32_t>(box_tokens)};
  const cuuint32_t steps[] = {1, 1, 1};
  // Not wider than a head's row: the rest would be another head's, fetched for nothing.
  const CUtensorMapL2promotion promotion =
      HS * 2 >= 256 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace sala
