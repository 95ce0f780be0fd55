// Attention of the asked positions alone, from the layer's own queries and keys.
#include "trainer/scores/retrieval_pass.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ops.h"
#include "model/forward.h"
#include "model/mixers/projections.h"

namespace sala {

namespace {

// Positions that ask, and the position that each should look at.
struct Asked {
  std::vector<int64_t> from, to;

  void add(int64_t position, int64_t target) {
    from.push_back(position);
    to.push_back(target);
  }
};

// Mean over `asked` of the mass at its targets, summed over the heads.
double mass_at(const Heads& heads, const Asked& asked) {
  const int64_t n = static_cast<int64_t>(asked.from.size()), T = heads.k.size(0);
  const int64_t NKV = heads.k.size(1), HS = heads.k.size(2), G = heads.q.size(1) / NKV;
  const at::Tensor from = at::tensor(asked.from).to(heads.q.device()),
                   to = at::tensor(asked.to).to(heads.q.device());
  const at::Tensor q = heads.q.index_select(0, from)
                           .to(at::kFloat)
                           .view({n, NKV, G, HS})
                           .permute({1, 2, 0, 3})
                           .reshape({NKV, G * n, HS});
  const at::Tensor k = heads.k.to(at::kFloat).transpose(0, 1);
  at::Tensor scores = at::bmm(q, k.transpose(1, 2)).div_(std::sqrt(static_cast<double>(HS)));
  const at::Tensor future =
      at::arange(T, from.options()).unsqueeze(0) > from.unsqueeze(1);  // (n, T)
  scores.view({NKV * G, n, T}).masked_fill_(future, -std::numeric_limits<double>::infinity());
  const at::Tensor mass = at::softmax(scores, -1).view({NKV * G, n, T}).sum(0);
  return mass.gather(1, to.unsqueeze(1)).mean().item<double>();
}

}  // namespace

RetrievalPass::Mass RetrievalPass::operator()(Run& run, int64_t number, const ScoreRow& row,
                                              int64_t layer) {
  const at::NoGradGuard no_grad;
  Network& teacher = run.teacher();
  const Model& model = teacher.model;
  if (number != number_ || layer < next_) {
    batch_ = single_document(row.ids, 0, run.world.device());
    x_ = run_units(model, teacher.parameters, 0, 1, {}, model.env(batch_, false));
    next_ = 0;
    number_ = number;
  }
  const Env env = model.env(batch_, false);
  for (; next_ < layer; ++next_) {
    x_ = run_units(model, teacher.parameters, next_ + 1, next_ + 2, x_, env);
  }

  Heads heads;
  {
    const ModelConfig& c = model.config();
    const Lease weights = teacher.parameters.lease(model.units()[layer + 1]->parts);
    const at::Tensor normed =
        std::get<0>(rmsnorm_forward(x_, weights[0]["input_layernorm.weight"], c.rms_eps));
    const MixerCall call{c, weights[1], env, layer, nullptr};
    project_forward(c.mixers[layer], call, normed, heads);
  }
  Asked before, after, answer;
  for (int64_t t = 0; t + 1 < static_cast<int64_t>(row.ids.size()); ++t) {
    if (row.source[t] < 0 || row.source[t + 1] < 0) continue;
    if (row.recall[t].item<double>() > 0) {
      answer.add(t, row.source[t + 1]);
    } else if (row.source[t + 1] == row.source[t] + 1) {  // else an answer ends here
      before.add(t, row.source[t]);
      after.add(t, row.source[t] + 1);
    }
  }
  return {mass_at(heads, before) + mass_at(heads, after), mass_at(heads, answer)};
}

}  // namespace sala
