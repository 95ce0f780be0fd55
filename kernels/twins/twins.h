// Plain-loop twins of the ops of kernels/ops.h and kernels/topk.h: same arguments and results, CPU
// only, obvious loops, sums in fp64, rounding to the tensor's dtype exactly where the op's
// definition rounds. They define what the ops compute and are slow on purpose. Those of lightning
// and sparse attention are in kernels/twins/attention.h.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "kernels/documents.h"
#include "kernels/ops.h"
#include "kernels/topk.h"

namespace sala {

std::tuple<at::Tensor, at::Tensor> rmsnorm_forward_twin(const at::Tensor& x,
                                                        const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor> rmsnorm_backward_twin(const at::Tensor& dy, const at::Tensor& x,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& rstd);

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rmsnorm_forward_twin(const at::Tensor& x,
                                                                        const at::Tensor& y,
                                                                        double residual_scale,
                                                                        const at::Tensor& weight,
                                                                        double eps);
std::tuple<at::Tensor, at::Tensor> add_rmsnorm_backward_twin(const at::Tensor& du,
                                                             const at::Tensor& dh,
                                                             const at::Tensor& h,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& rstd);

std::tuple<at::Tensor, at::Tensor> qk_norm_rope_forward_twin(const at::Tensor& x,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& cos,
                                                             const at::Tensor& sin, double eps);
std::tuple<at::Tensor, at::Tensor> qk_norm_rope_backward_twin(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
    const at::Tensor& cos, const at::Tensor& sin);

at::Tensor swiglu_forward_twin(const at::Tensor& gate, const at::Tensor& up);
std::tuple<at::Tensor, at::Tensor> swiglu_backward_twin(const at::Tensor& dy,
                                                        const at::Tensor& gate,
                                                        const at::Tensor& up);

std::tuple<at::Tensor, at::Tensor> gated_norm_forward_twin(const at::Tensor& o, const at::Tensor& z,
                                                           const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_norm_backward_twin(const at::Tensor& dy,
                                                                        const at::Tensor& o,
                                                                        const at::Tensor& z,
                                                                        const at::Tensor& weight,
                                                                        const at::Tensor& rstd);

std::tuple<at::Tensor, at::Tensor> dense_attention_forward_twin(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Documents& q_docs,
    const Documents& k_docs, double scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_attention_backward_twin(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const Documents& q_docs, const Documents& k_docs,
    double scale);

VocabLoss linear_cross_entropy_twin(const at::Tensor& x, const at::Tensor& w,
                                    const at::Tensor& targets, const at::Tensor& weight,
                                    double logit_scale, at::Tensor* dx = nullptr,
                                    const at::Tensor& d_w = {});
VocabLoss linear_kl_twin(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                         const at::Tensor& x_teacher, const at::Tensor& w_teacher,
                         double teacher_logit_scale, const at::Tensor& targets,
                         const at::Tensor& weight, const DistillConfig& config,
                         at::Tensor* dx = nullptr, const at::Tensor& d_w = {});
TopkTeacher linear_topk_twin(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                             double temperature, int64_t k);
VocabLoss linear_topk_kl_twin(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                              const TopkTeacher& teacher, const at::Tensor& targets,
                              const at::Tensor& weight, const DistillConfig& config,
                              at::Tensor* dx = nullptr, const at::Tensor& d_w = {});

void adamw_step_twin(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad,
                     at::Tensor copy, const AdamW& options);

}  // namespace sala
