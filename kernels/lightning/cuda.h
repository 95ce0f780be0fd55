// Lightning attention in CUDA kernels: whole sequences (kernels/lightning/launch.h) and one token
// at a time. Arguments and results are those of kernels/ops.h, already checked.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "kernels/documents.h"

namespace sala {

// Whether lightning_forward_cuda and lightning_backward_cuda take such a q: bf16 on a device of
// compute capability 8.0 or later, head size 64 or 128, at most 512 heads.
bool lightning_kernels_run(const at::Tensor& q);
std::tuple<at::Tensor, at::Tensor> lightning_forward_cuda(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes,
    const Documents& docs, double scale, const at::Tensor& initial_state, bool want_final_state);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_cuda(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    const at::Tensor& d_final_state);

// Whether lightning_step takes such a q: bf16 or fp32 on compute capability 8.0 or later, head size
// a multiple of 4 up to 256, at most 512 heads.
bool lightning_step_runs(const at::Tensor& q);
// Every document is one token. Returns o and the next state: in `next` where it is given, which may
// be the initial one.
std::tuple<at::Tensor, at::Tensor> lightning_step(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, const at::Tensor& slopes,
                                                  double scale, const at::Tensor& initial_state,
                                                  at::Tensor next = {});

}  // namespace sala
