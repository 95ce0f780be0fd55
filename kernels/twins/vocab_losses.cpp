// The losses over the vocabulary in plain loops, one token at a time.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"
#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {
namespace {

using Row = std::vector<double>;

// A linear layer over the vocabulary and its gradients.
class Head {
 public:
  Head(const at::Tensor& x, const at::Tensor& w, double scale)
      : C_(w.size(1)),
        V_(w.size(0)),
        scale_(scale),
        x_(values_of(x)),
        w_(values_of(w)),
        dx_(x_.size()),
        dw_(w_.size()) {}

  Row logits(int64_t t) const {
    Row z(V_);
    for (int64_t i = 0; i < V_; ++i) {
      for (int64_t c = 0; c < C_; ++c) z[i] += scale_ * x_[t * C_ + c] * w_[i * C_ + c];
    }
    return z;
  }
  void add_gradient(int64_t t, const Row& dz) {
    for (int64_t i = 0; i < V_; ++i) {
      for (int64_t c = 0; c < C_; ++c) {
        dx_[t * C_ + c] += scale_ * dz[i] * w_[i * C_ + c];
        dw_[i * C_ + c] += scale_ * dz[i] * x_[t * C_ + c];
      }
    }
  }
  void write(const at::Tensor& x, at::Tensor* dx, at::Tensor d_w) const {
    if (dx == nullptr) return;
    *dx = tensor_of(dx_, x.sizes(), x.scalar_type());
    if (d_w.defined()) d_w.add_(tensor_of(dw_, {V_, C_}, at::kDouble));
  }

 private:
  int64_t C_, V_;
  double scale_;
  Row x_, w_, dx_, dw_;
};

Row log_softmax(Row z, double temperature) {
  for (double& value : z) value /= temperature;
  const double largest = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double value : z) sum += std::exp(value - largest);
  for (double& value : z) value -= largest + std::log(sum);
  return z;
}

// The cross-entropy's share in the loss of token t.
double ce_share(const DistillConfig& config, int64_t t) {
  return config.ce_weight_T.defined() ? config.ce_weight_T[t].item<double>() : config.ce_weight;
}

// What the two distillation losses return; ce where there are targets.
VocabLoss distilled(double loss_sum, const Row& loss, const Row& kl, const Row& ce,
                    bool has_targets, at::ScalarType type) {
  const auto T = static_cast<int64_t>(loss.size());
  VocabLoss result;
  result.loss_sum = at::scalar_tensor(loss_sum, at::kDouble);
  result.loss_T = tensor_of(loss, {T}, type);
  result.kl_T = tensor_of(kl, {T}, type);
  if (has_targets) result.ce_T = tensor_of(ce, {T}, type);
  return result;
}

}  // namespace

VocabLoss linear_cross_entropy_twin(const at::Tensor& x, const at::Tensor& w,
                                    const at::Tensor& targets, const at::Tensor& weight,
                                    double logit_scale, at::Tensor* dx, const at::Tensor& d_w) {
  const int64_t T = x.size(0), V = w.size(0);
  const auto target = values_of(targets), share = values_of(weight);
  Head head(x, w, logit_scale);
  Row loss(T);
  double loss_sum = 0;
  for (int64_t t = 0; t < T; ++t) {
    const Row log_p = log_softmax(head.logits(t), 1);
    const auto wanted = static_cast<int64_t>(target[t]);
    loss[t] = -log_p[wanted];
    loss_sum += share[t] * loss[t];
    Row dz(V);
    for (int64_t i = 0; i < V; ++i) dz[i] = share[t] * (std::exp(log_p[i]) - (i == wanted));
    head.add_gradient(t, dz);
  }
  head.write(x, dx, d_w);
  VocabLoss result;
  result.loss_sum = at::scalar_tensor(loss_sum, at::kDouble);
  result.loss_T = tensor_of(loss, {T}, accumulate_type(x));
  return result;
}

VocabLoss linear_kl_twin(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                         const at::Tensor& x_teacher, const at::Tensor& w_teacher,
                         double teacher_logit_scale, const at::Tensor& targets,
                         const at::Tensor& weight, const DistillConfig& config, at::Tensor* dx,
                         const at::Tensor& d_w) {
  const int64_t T = x.size(0), V = w.size(0);
  const double temperature = config.temperature;
  const auto target = values_of(targets), share = values_of(weight);
  Head head(x, w, logit_scale);
  const Head teacher(x_teacher, w_teacher, teacher_logit_scale);
  Row loss(T), kl(T), ce(T);
  double loss_sum = 0;
  for (int64_t t = 0; t < T; ++t) {
    const double a = ce_share(config, t);
    const Row log_p = log_softmax(head.logits(t), temperature);
    const Row log_hard = log_softmax(head.logits(t), 1);
    const Row log_q = log_softmax(teacher.logits(t), temperature);
    const int64_t wanted = targets.defined() ? static_cast<int64_t>(target[t]) : -1;
    if (wanted >= 0) ce[t] = -log_hard[wanted];
    Row dz(V);
    for (int64_t i = 0; i < V; ++i) {
      kl[t] += temperature * temperature * std::exp(log_q[i]) * (log_q[i] - log_p[i]);
      dz[i] = (1 - a) * temperature * (std::exp(log_p[i]) - std::exp(log_q[i]));
      if (wanted >= 0) dz[i] += a * (std::exp(log_hard[i]) - (i == wanted));
      dz[i] *= share[t];
    }
    loss[t] = (1 - a) * kl[t] + a * ce[t];
    loss_sum += share[t] * loss[t];
    head.add_gradient(t, dz);
  }
  head.write(x, dx, d_w);
  return distilled(loss_sum, loss, kl, ce, targets.defined(), accumulate_type(x));
}

TopkTeacher linear_topk_twin(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                             double temperature, int64_t k) {
  const int64_t T = x.size(0), V = w.size(0);
  const Head head(x, w, logit_scale);
  Row ids(T * k), log_top(T * k), log_tail(T);
  for (int64_t t = 0; t < T; ++t) {
    const Row log_p = log_softmax(head.logits(t), temperature);
    std::vector<int64_t> order(V);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return log_p[a] > log_p[b]; });
    double tail = 0;
    for (int64_t i = 0; i < V; ++i) {
      if (i >= k) {
        tail += std::exp(log_p[order[i]]);
        continue;
      }
      ids[t * k + i] = static_cast<double>(order[i]);
      log_top[t * k + i] = log_p[order[i]];
    }
    log_tail[t] = std::log(tail);
  }
  return {tensor_of(ids, {T, k}, at::kLong), tensor_of(log_top, {T, k}, accumulate_type(x)),
          tensor_of(log_tail, {T}, accumulate_type(x))};
}

VocabLoss linear_topk_kl_twin(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                              const TopkTeacher& teacher, const at::Tensor& targets,
                              const at::Tensor& weight, const DistillConfig& config, at::Tensor* dx,
                              const at::Tensor& d_w) {
  const int64_t T = x.size(0), V = w.size(0), k = teacher.ids.size(1);
  const double temperature = config.temperature;
  const auto target = values_of(targets), share = values_of(weight);
  const auto ids = values_of(teacher.ids), log_top = values_of(teacher.log_p);
  const auto log_tail = values_of(teacher.log_tail);
  const auto gap = [](double log_p, double log_q) {
    return std::isinf(log_p) ? 0 : std::exp(log_p) * (log_p - log_q);
  };
  Head head(x, w, logit_scale);
  Row loss(T), kl(T), ce(T);
  double loss_sum = 0;
  for (int64_t t = 0; t < T; ++t) {
    const double a = ce_share(config, t);
    const Row log_q = log_softmax(head.logits(t), temperature);
    const Row log_hard = log_softmax(head.logits(t), 1);
    std::vector<int64_t> place(V, -1);  // among the teacher's ids; -1: in the tail
    for (int64_t i = 0; i < k; ++i) place[static_cast<int64_t>(ids[t * k + i])] = i;
    double q_tail = 0;
    for (int64_t i = 0; i < V; ++i) q_tail += place[i] < 0 ? std::exp(log_q[i]) : 0;
    kl[t] = gap(log_tail[t], std::log(q_tail));
    const int64_t wanted = targets.defined() ? static_cast<int64_t>(target[t]) : -1;
    if (wanted >= 0) ce[t] = -log_hard[wanted];
    Row dz(V);
    for (int64_t i = 0; i < V; ++i) {
      const double q = std::exp(log_q[i]);
      if (place[i] < 0) {
        dz[i] = (q_tail - std::exp(log_tail[t])) * q / q_tail;
      } else {
        const double log_p = log_top[t * k + place[i]];
        kl[t] += gap(log_p, log_q[i]);
        dz[i] = q - std::exp(log_p);
      }
      dz[i] *= (1 - a) * temperature;
      if (wanted >= 0) dz[i] += a * (std::exp(log_hard[i]) - (i == wanted));
      dz[i] *= share[t];
    }
    kl[t] *= temperature * temperature;
    loss[t] = (1 - a) * kl[t] + a * ce[t];
    loss_sum += share[t] * loss[t];
    head.add_gradient(t, dz);
  }
  head.write(x, dx, d_w);
  return distilled(loss_sum, loss, kl, ce, targets.defined(), accumulate_type(x));
}

}  // namespace sala
