// The one product that LibTorch has no call for: cuBLASLt adds it to fp32 by itself, scales of rows
// included. On raw pointers; no torch here.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace sala {

// sum (M, N) += diag(a_scale) a b^T diag(b_scale): a (M, K) and b (N, K) e4m3, sum fp32.
struct Fp8AddProduct {
  int64_t M, N, K;  // multiples of kFp8Multiple
  const void *a, *b;
  const float *a_scale, *b_scale;
  float* sum;
  void* workspace;  // a product that is cut along K leaves its parts there
  size_t workspace_bytes;
};

// False: cuBLASLt has no kernel for it on the current device, and nothing was written. The answer
// for a device and sizes is found once and stays. Ordered on `stream`, never blocks, the same bits
// at every call with pointers that are aligned alike. Errors of a launch: std::runtime_error.
bool add_fp8_product(const Fp8AddProduct& op, CUstream_st* stream);

}  // namespace sala
