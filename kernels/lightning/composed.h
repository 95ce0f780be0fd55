// Lightning attention composed of LibTorch ops, for every device, dtype and head size: what runs
// where the CUDA kernels do not (kernels/lightning/cuda.h). Arguments and results are those of
// kernels/ops.h, already checked; the final state always comes.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "kernels/documents.h"

namespace sala {

std::tuple<at::Tensor, at::Tensor> lightning_forward_composed(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes,
    const Documents& docs, double scale, const at::Tensor& initial_state);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_composed(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    const at::Tensor& d_final_state);

}  // namespace sala
