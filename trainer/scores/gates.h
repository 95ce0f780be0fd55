// One gate per layer under a budget: how g in (0, 1)^L follows from logits, and how logits learn.
//
// The free layers' gates are a soft choice of K of them:
//   g_l = sigmoid((a_l - m) / tau),  m such that the sum of g is K,
// so that the budget holds at every step and a layer rises only where others fall. K falls in a
// straight line from 95 % of the layers to the budget over the first half of the steps: what can be
// given up goes first, and of two layers that stand in for each other one is kept, because the loss
// of the second grows as the first goes. tau falls geometrically from 1 to 0.1, so that at the end
// gates are open or closed but for near ties. The logits learn by Adam (0.9, 0.99), at a rate that
// falls to 0 in a straight line. The idea of one gate per layer between frozen mixers, learned
// together with a pull towards linear: FlashMorph (arXiv:2606.30562); budget and schedule are ours.
//
// All on the host, in fp64: L numbers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sala {

// g (n) of logits (n) with sum `budget`, 0 < budget < n, and m.
std::vector<double> soft_choice(std::span<const double> logits, double budget, double tau,
                                double* threshold = nullptr);
// The gradient at the logits (n) from that at g (n).
std::vector<double> soft_choice_backward(std::span<const double> gates,
                                         std::span<const double> d_gates, double tau);

class Gates {
 public:
  // `open` (L): layers whose gate stays 1. `budget`: of all layers.
  Gates(std::vector<bool> open, int64_t budget, int64_t num_steps, double lr);

  std::vector<double> values() const;          // (L), at this step
  double budget() const;                       // their sum
  void step(std::span<const double> d_gates);  // (L)
  // (L): logit over the threshold of the final budget, a_l - m; of open layers the highest of all.
  std::vector<double> scores() const;

 private:
  double free_budget() const;
  double tau() const;

  std::vector<bool> open_;
  std::vector<size_t> free_;  // layers
  double final_budget_;       // of the free layers
  int64_t num_steps_, step_ = 0;
  double lr_;
  std::vector<double> logits_, m_, v_;  // of the free layers
};

}  // namespace sala
