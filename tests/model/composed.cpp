// The composition, tensor by tensor.
#include "tests/model/composed.h"

#include <cmath>

#include "kernels/ops.h"
#include "tests/model/differentiable_ops.h"

namespace sala {

namespace {

struct Input {
  const ModelConfig& c;
  const Leaves& w;
  const at::Tensor& x;

  at::Tensor project(const std::string& name) const {
    return at::linear(x, w[name + ".weight"], w.find(name + ".bias"));
  }
  at::Tensor heads(const std::string& name) const {
    return project(name).view({x.size(0), -1, c.head_size});
  }
  at::Tensor rotated(const std::string& name, const char* norm, const RopeTable& rope) const {
    return qk_norm_rope(heads(name), w.find(norm), rope.cos, rope.sin, c.rms_eps);
  }
};

// Document by document, each as one that is alone.
at::Tensor softmax(const ModelConfig& c, bool may_be_sparse, const at::Tensor& q,
                   const at::Tensor& k, const at::Tensor& v, const Documents& docs) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_size));
  std::vector<at::Tensor> parts;
  for (int64_t d = 0; d < docs.count(); ++d) {
    const int64_t length = docs.length(d);
    const Documents alone = Documents::single(length, at::kCPU);
    auto rows = [&](const at::Tensor& t) {
      return t.narrow(0, docs.offsets[d], length).contiguous();
    };
    if (may_be_sparse && length >= c.sparse.dense_len) {
      const at::Tensor blocks =
          block_select(rows(q).detach(), rows(k).detach(), alone, alone, c.sparse, scale);
      parts.push_back(block_sparse_attention(rows(q), rows(k), rows(v), blocks, alone,
                                             c.sparse.block_size, scale));
    } else {
      parts.push_back(dense_attention(rows(q), rows(k), rows(v), alone, scale));
    }
  }
  return at::cat(parts);
}

}  // namespace

Leaves::Leaves(const Weights& weights) : layout(weights.layout_pointer()) {
  for (const at::Tensor& view : weights.views()) {
    tensors.push_back(view.detach().clone().set_requires_grad(true));
  }
}

at::Tensor Leaves::find(std::string_view suffix) const {
  const int64_t index = layout->index(suffix);
  return index < 0 ? at::Tensor() : tensors[index];
}

at::Tensor Leaves::operator[](std::string_view suffix) const {
  return tensors.at(layout->index(suffix));
}

at::Tensor Leaves::flat_gradient() const {
  at::Tensor flat = at::zeros({layout->num_elements}, tensors[0].options());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].grad().defined()) continue;
    group_view(*layout, flat, static_cast<int64_t>(i), static_cast<int64_t>(i))
        .copy_(tensors[i].grad());
  }
  return flat;
}

at::Tensor composed_mixer(const ModelConfig& c, Mixer mixer, const Leaves& w, const at::Tensor& x,
                          const Env& env) {
  const Input in{c, w, x};
  const Documents& docs = env.batch->docs;
  RopeTable rope;
  if (mixer == Mixer::kLightning && c.lightning_rope) rope = env.lightning_rope;
  if (mixer == Mixer::kFull || (mixer == Mixer::kSparse && c.sparse_rope)) rope = env.full_rope;
  const at::Tensor q = in.rotated("q_proj", "q_norm.weight", rope);
  at::Tensor k = in.rotated("k_proj", "k_norm.weight", rope), v = in.heads("v_proj"), o;
  if (mixer == Mixer::kLightning) {
    const int64_t group = c.num_heads / k.size(1);
    k = k.repeat_interleave(group, 1);
    v = v.repeat_interleave(group, 1);
    const double alpha = c.lightning_scale > 0 ? c.lightning_scale : 1 / std::sqrt(c.head_size);
    o = std::get<0>(
        lightning_attention(q, k, v, lightning_slopes(c.num_heads), docs, alpha, {}, false));
  } else {
    o = softmax(c, mixer == Mixer::kSparse && env.sparse, q, k, v, docs);
  }
  o = o.reshape({x.size(0), c.q_size()});
  if (w.find("o_norm.weight").defined()) o = rmsnorm(o, w["o_norm.weight"], c.rms_eps);
  for (const char* gate : {"o_gate", "z_proj"}) {
    if (w.find(std::string(gate) + ".weight").defined()) o = o * at::sigmoid(in.project(gate));
  }
  return at::linear(o, w["o_proj.weight"], w.find("o_proj.bias"));
}

at::Tensor composed_block(const ModelConfig& c, Mixer mixer, const Leaves& block,
                          const Leaves& mixer_weights, const at::Tensor& x, const Env& env) {
  const at::Tensor mixed = composed_mixer(
      c, mixer, mixer_weights, rmsnorm(x, block["input_layernorm.weight"], c.rms_eps), env);
  const at::Tensor h = x + c.residual_scale * mixed;
  const at::Tensor u = rmsnorm(h, block["post_attention_layernorm.weight"], c.rms_eps);
  const at::Tensor gate = at::linear(u, block["mlp.gate_proj.weight"]);
  const at::Tensor up = at::linear(u, block["mlp.up_proj.weight"]);
  return h + c.residual_scale * at::linear(at::silu(gate) * up, block["mlp.down_proj.weight"]);
}

}  // namespace sala
