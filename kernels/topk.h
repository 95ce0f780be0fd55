// Distillation from a teacher that is cut to its likeliest ids: what is kept of it, and the KL to
// it. Two more ops over the vocabulary beside those of kernels/ops.h, in the same chunks of tokens.
#pragma once

#include <ATen/ATen.h>

#include "kernels/ops.h"

namespace sala {

// Of T next-token distributions softmax(z' / temperature) over V ids: the k likeliest ids and all
// others in one bucket, the tail. Together they have probability one.
struct TopkTeacher {
  at::Tensor ids;       // (T, k) int64, the likeliest first, none twice in a row
  at::Tensor log_p;     // (T, k) fp32/fp64: their log-probabilities
  at::Tensor log_tail;  // (T) likewise: of all others together; -inf where k = V

  bool defined() const { return ids.defined(); }
};

// The cut of the model with features x (T, C) and vocabulary projection w (V, C), both of one dtype
// and device: z' = x w^T logit_scale. 1 <= k <= V, temperature > 0. The tail is summed from the
// other ids themselves, not as what the likeliest leave of one.
TopkTeacher linear_topk(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                        double temperature, int64_t k);

// KL(teacher || student) between both distributions with the tail as one bucket. With the student's
// logits z, q = softmax(z / K), K the temperature that the teacher was cut at, S the teacher's ids
// of the token, q_tail = sum of q_j over j not in S:
//   kl = K^2 (sum_{i in S} p_i log(p_i / q_i) + p_tail log(p_tail / q_tail))
//   dkl/dz_i = K (q_i - p_i)                     i in S
//   dkl/dz_j = K (q_tail - p_tail) q_j / q_tail  j not in S: inside the tail nothing moves
// A bucket with p = 0 adds nothing. Cutting never raises the KL (the data-processing inequality);
// with k = V it is linear_kl's. Mix with the cross-entropy, weights, dx and d_w as in linear_kl.
// On CUDA without a wait for the host; targets and ids outside the vocabulary are an error on the
// CPU and a device-side assertion on CUDA.
VocabLoss linear_topk_kl(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                         const TopkTeacher& teacher, const at::Tensor& targets,
                         const at::Tensor& weight, const DistillConfig& config,
                         at::Tensor* dx = nullptr, const at::Tensor& d_w = {});

}  // namespace sala
