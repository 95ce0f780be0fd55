// sala-bench: losses over the vocabulary and the optimizer.
#include <algorithm>

#include "kernels/ops.h"
#include "kernels/topk.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

constexpr int64_t kLossTokens = 8 << 10;  // a chunk of rows is a chunk of rows: longer is the same

std::string loss_text(const BenchShape& s) { return shape_text({s.tokens, s.width, s.vocab}); }

// Passes over `heads` output heads (V, C) and inputs (T, C).
double loss_bytes(const BenchShape& s, double heads, bool gradients) {
  const double w = double(s.vocab) * double(s.width), x = s.rows(s.width);
  // The gradient of x is written; that of the head, in fp32, is read and written.
  return heads * (w + x) * s.element_bytes() + (gradients ? x * s.element_bytes() + 8 * w : 0);
}

std::function<double(const BenchShape&)> product_flops(double products) {
  return
      [products](const BenchShape& s) { return products * 2 * s.rows(s.width) * double(s.vocab); };
}

// Rows of activations, an output head and its gradient, small enough for soft logits.
struct LossInputs {
  at::Tensor x, w, d_w, targets, weight;

  LossInputs(const BenchShape& s, bool gradients)
      : x(s.normal({s.tokens, s.width})),
        w(s.normal({s.vocab, s.width}).mul_(0.02)),
        targets(at::randint(s.vocab, {s.tokens}, at::TensorOptions(s.device).dtype(at::kLong))),
        weight(at::ones({s.tokens}, s.wide())) {
    if (gradients) d_w = at::zeros({s.vocab, s.width}, s.wide());
  }
};

BenchRun cross_entropy_run(const BenchShape& s, bool gradients) {
  const LossInputs in(s, gradients);
  return [=]() -> BenchTensors {
    at::Tensor dx;
    const VocabLoss loss = linear_cross_entropy(in.x, in.w, in.targets, in.weight, 1.0,
                                                gradients ? &dx : nullptr, in.d_w);
    return {loss.loss_T, dx};
  };
}

BenchRun kl_run(const BenchShape& s, bool gradients) {
  const LossInputs in(s, gradients), teacher(s, false);
  return [=]() -> BenchTensors {
    at::Tensor dx;
    const VocabLoss loss = linear_kl(in.x, in.w, 1.0, teacher.x, teacher.w, 1.0, in.targets,
                                     in.weight, DistillConfig(), gradients ? &dx : nullptr, in.d_w);
    return {loss.loss_T, dx};
  };
}

int64_t cut_of(const BenchShape& s) { return std::min<int64_t>(64, s.vocab); }

BenchRun topk_run(const BenchShape& s) {
  const LossInputs in(s, false);
  return [=, k = cut_of(s)]() -> BenchTensors {
    const TopkTeacher teacher = linear_topk(in.x, in.w, 1.0, 1.0, k);
    return {teacher.ids, teacher.log_p, teacher.log_tail};
  };
}

BenchRun topk_kl_run(const BenchShape& s) {
  const LossInputs in(s, true), other(s, false);
  const TopkTeacher teacher = linear_topk(other.x, other.w, 1.0, 1.0, cut_of(s));
  return [=]() -> BenchTensors {
    at::Tensor dx;
    const VocabLoss loss = linear_topk_kl(in.x, in.w, 1.0, teacher, in.targets, in.weight,
                                          DistillConfig(), &dx, in.d_w);
    return {loss.loss_T, dx};
  };
}

template <int kHeads, bool kGradients>
double bytes(const BenchShape& s) {
  return loss_bytes(s, kHeads, kGradients);
}

// As many weights as one matrix of the feed-forward has.
double adamw_bytes(const BenchShape& s) {
  // Read: gradient; read and written: master, both moments; written: the copy for compute.
  return double(s.width) * double(s.ffn) * (4 + 3 * 8 + s.element_bytes());
}

BenchRun adamw_run(const BenchShape& s) {
  const int64_t count = s.width * s.ffn;
  const at::Tensor grad = at::randn({count}, s.wide());
  const at::Tensor copy = at::empty({count}, s.wide().dtype(s.dtype));
  at::Tensor master = at::randn({count}, s.wide()), m = at::zeros_like(master);
  at::Tensor v = at::zeros_like(master);
  AdamW options;
  options.lr = 1e-5;
  options.weight_decay = 0.1;
  return [=]() mutable -> BenchTensors {
    adamw_step(master, m, v, grad, copy, options);
    return {};
  };
}

}  // namespace

std::vector<BenchOp> training_bench_ops() {
  constexpr auto kTokens = BenchSweep::kTokens;
  return {
      {"linear_cross_entropy", "fwd", kTokens, loss_text, bytes<1, false>, product_flops(1),
       prepare_run<cross_entropy_run, false>, kLossTokens},
      {"linear_cross_entropy", "fwd+bwd", kTokens, loss_text, bytes<1, true>, product_flops(3),
       prepare_run<cross_entropy_run, true>, kLossTokens},
      {"linear_kl", "fwd", kTokens, loss_text, bytes<2, false>, product_flops(2),
       prepare_run<kl_run, false>, kLossTokens},
      {"linear_kl", "fwd+bwd", kTokens, loss_text, bytes<2, true>, product_flops(4),
       prepare_run<kl_run, true>, kLossTokens},
      {"linear_topk", "fwd", kTokens, loss_text, bytes<1, false>, product_flops(1), topk_run,
       kLossTokens},
      {"linear_topk_kl", "fwd+bwd", kTokens, loss_text, bytes<1, true>, product_flops(3),
       topk_kl_run, kLossTokens},
      {"adamw",
       "step",
       BenchSweep::kOnce,
       [](const BenchShape& s) {
         return shape_text({s.width, s.ffn});
       },
       adamw_bytes,
       {},
       adamw_run},
  };
}

}  // namespace sala
