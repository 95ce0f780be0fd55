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
  float step_size;     // lr / (1 - beta1^t)
  float inverse_root;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float decay;  // lr * weight_decay
};

SALA_HOST_DEVICE inline float adamw_element(float w, float& m, float& v, float grad,
                                            const AdamWFactors& f) {
  const float g = grad * f.grad_scale;
  m = f.beta1 * m + f.one_minus_beta1 * g;
  v = f.beta2 * v + f.one_minus_beta2 * g * g;
  return w - (f.step_size * m / (sqrtf(v) * f.inverse_root + f.eps) + f.decay * w);
}

enum class CopyType { kNone, kFloat, kBFloat16 };

// Updates master, m and v in place and writes `copy`, all of num_elements; ordered on `stream`,
// never blocks. Returns the launch's cudaError_t.
int adamw_cuda(float* master, float* m, float* v, void* copy, CopyType copy_type, const float* grad,
               const AdamWFactors& factors, int64_t num_elements, CUstream_st* stream);

}  // namespace sala
