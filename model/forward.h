// Passes that no backward follows: teachers, evaluation, generation, scoring. Each leases a unit's
// weights while it runs and hints the next one's, so that a lender that has to fetch them can
// begin.
#pragma once

#include <ATen/ATen.h>

#include "model/model.h"

namespace sala {

// Units [first, last); x (T, C) is unit `first`'s input, undefined for the embedding. Returns the
// last one's output (T, C). `after`: parts that will be leased next, where that is known.
at::Tensor run_units(const Model& model, Lender& weights, size_t first, size_t last, at::Tensor x,
                     const Env& env, std::span<const size_t> after = {});
// All units and the final norm: (T, C).
at::Tensor hidden(const Model& model, Lender& weights, const Env& env);
// Of final-norm outputs (rows, C): hidden W^T logit_scale, (rows, V) fp32 (fp64 for fp64).
at::Tensor logits(const Model& model, Lender& weights, const at::Tensor& hidden);

}  // namespace sala
