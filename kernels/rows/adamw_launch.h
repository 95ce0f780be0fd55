// The arithmetic of one AdamW element, shared by the CPU loop (adamw.cpp) and the CUDA kernel
// (adamw.cu), and the kernel's raw-pointer launcher. No torch here: nvcc reads it.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SALA_HOST_DEVICE __host__ __device__
#else
#define SALA_HOST_DEVICE
#endif

struct CUstream_st;

namespace sala {

// The constants of one step, formed on the host in double and rounded once.
struct AdamWFactors {
  float grad_scale;
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float inverse_root;  // 1 / sqrt(1 - beta2^t)
  float eps;
};

// Those of the elements [begin, begin + count).
struct AdamWRange {
  int64_t begin, count;
  float step_size;  // lr / (1 - beta1^t)
  float decay;      // lr * weight_decay
};

// What one launch updates: a kernel argument.
struct AdamWTable {
  static constexpr int kMostRanges = 32;
  AdamWFactors factors;
  int num_ranges = 0;
  AdamWRange ranges[kMostRanges];
};

SALA_HOST_DEVICE inline float adamw_element(float w, float& m, float& v, float grad,
                                            const AdamWFactors& f, const AdamWRange& range) {
  const float g = grad * f.grad_scale;
  m = f.beta1 * m + f.one_minus_beta1 * g;
  v = f.beta2 * v + f.one_minus_beta2 * g * g;
  return w - (range.step_size * m / (sqrtf(v) * f.inverse_root + f.eps) + range.decay * w);
}

enum class CopyType { kNone, kFloat, kBFloat16 };

// Updates the ranges of master, m and v in place and writes those of `copy`; ordered on `stream`,
// never blocks. Returns the launch's cudaError_t.
int adamw_cuda(float* master, float* m, float* v, void* copy, CopyType copy_type, const float* grad,
               const AdamWTable& table, CUstream_st* stream);

}  // namespace sala
