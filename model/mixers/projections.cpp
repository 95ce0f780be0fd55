// One product for q, k, v and z, and its way back.
//
// The product's result is split by copies, except where an op reads columns of it as they lie:
// what is kept then does not hold the rest of the result alive, and attention takes dense tensors.
// Kept: mixer_input; q, k, v, z; with QK-norm q and k before it as well; the gated output.
#include "model/mixers/projections.h"

#include "kernels/columns.h"
#include "kernels/ops.h"
#include "model/weights/parts.h"

namespace sala {

namespace {

struct Place {
  int64_t q, k, v, z, end;  // first columns, and their number
};

Place place_of(Mixer mixer, const ModelConfig& c) {
  const int64_t q = c.q_size(), kv = c.kv_size(mixer);
  const int64_t z = q + 2 * kv;
  return {0, q, q + kv, z, gate_name(c, mixer) ? z + q : z};
}

// (T, N * HS) columns -> (T, N, HS), as they lie.
at::Tensor by_head(const at::Tensor& x, int64_t head_size) {
  return x.view({x.size(0), x.size(1) / head_size, head_size});
}

struct GroupNames {
  std::string last_weight, last_bias;  // neighbours from q_proj on; last_bias empty: no biases
};

GroupNames group_names(Mixer mixer, const MixerCall& call) {
  const char* gate = gate_name(call.config, mixer);
  const std::string last = gate ? gate : "v_proj";
  const bool gate_bias = gate && call.config.out_bias;
  return {last + ".weight", gate_bias ? last + ".bias" : call.config.qkv_bias ? "v_proj.bias" : ""};
}

// (T, out of all). Biases of some of the four only (no family of today has that) are added after.
at::Tensor projected(Mixer mixer, const MixerCall& call, const at::Tensor& x) {
  const Weights& w = call.weights;
  const Matmul& matmul = call.env.matmul;
  const GroupNames names = group_names(mixer, call);
  const at::Tensor matrices = w.group("q_proj.weight", names.last_weight);
  if (names.last_bias.empty()) return linear_forward(matmul, x, matrices);
  const std::string first_bias = call.config.qkv_bias ? "q_proj.bias" : names.last_bias;
  const at::Tensor bias = w.group(first_bias, names.last_bias);
  if (bias.size(0) == matrices.size(0)) return linear_forward(matmul, x, matrices, bias);
  at::Tensor y = linear_forward(matmul, x, matrices);
  const int64_t first = call.config.qkv_bias ? 0 : place_of(mixer, call.config).z;
  y.narrow(1, first, bias.size(0)).add_(bias);
  return y;
}

void add_bias_gradients(Mixer mixer, const MixerCall& call, const at::Tensor& d,
                        Gradient& gradient) {
  const GroupNames names = group_names(mixer, call);
  if (names.last_bias.empty()) return;
  if (call.config.qkv_bias) {
    gradient.add_bias("q_proj.bias", names.last_bias, d);
  } else {
    const int64_t z = place_of(mixer, call.config).z;
    gradient.add_bias(names.last_bias, names.last_bias, d.narrow(1, z, d.size(1) - z));
  }
}

const RopeTable& rope_of(Mixer mixer, const MixerCall& call) {
  static const RopeTable none;
  const ModelConfig& c = call.config;
  if (mixer == Mixer::kLightning) return c.lightning_rope ? call.env.lightning_rope : none;
  return mixer == Mixer::kFull || c.sparse_rope ? call.env.full_rope : none;
}

// Names of q's and k's tensors in the list and in the weights.
struct QkNames {
  const char *raw, *rstd, *heads, *norm;
};
constexpr QkNames kQ{"q_raw", "q_rstd", "q", "q_norm.weight"};
constexpr QkNames kK{"k_raw", "k_rstd", "k", "k_norm.weight"};

// QK-norm and rotation of the heads that `columns` gives. Without a norm backward needs only what
// comes out, with one also what went in.
template <typename Columns>
at::Tensor norm_and_rotate(Mixer mixer, const MixerCall& call, const QkNames& names,
                           Columns&& columns) {
  const ModelConfig& c = call.config;
  const RopeTable& rope = rope_of(mixer, call);
  const at::Tensor norm = call.weights.find(names.norm);
  if (!norm.defined()) {
    return find_or_make(call.saved, names.heads, Cost::kProduct, [&] {
      const at::Tensor raw = by_head(columns(), c.head_size);
      if (!rope.cos.defined()) return dense_columns(raw);
      return std::get<0>(qk_norm_rope_forward(raw, norm, rope.cos, rope.sin, c.rms_eps));
    });
  }
  const at::Tensor raw = find_or_make(call.saved, names.raw, Cost::kProduct, [&] {
    const at::Tensor view = by_head(columns(), c.head_size);
    return call.saved ? dense_columns(view) : view;
  });
  auto [heads, rstd] = qk_norm_rope_forward(raw, norm, rope.cos, rope.sin, c.rms_eps);
  if (call.saved) {
    call.saved->keep(names.rstd, rstd, Cost::kElementwise);
    call.saved->keep(names.heads, heads, Cost::kElementwise);
  }
  return heads;
}

void norm_and_rotate_backward(Mixer mixer, const MixerCall& call, const QkNames& names,
                              const at::Tensor& d_heads, const at::Tensor& d_raw,
                              Gradient& gradient) {
  const RopeTable& rope = rope_of(mixer, call);
  const at::Tensor norm = call.weights.find(names.norm);
  if (!norm.defined() && !rope.cos.defined()) {
    copy_columns(d_raw, d_heads);
    return;
  }
  at::Tensor raw, rstd;
  if (norm.defined()) {
    raw = call.saved->take(names.raw);
    rstd = call.saved->take(names.rstd);
  }
  const auto [dx, d_norm] =
      qk_norm_rope_backward(d_heads, raw, norm, rstd, rope.cos, rope.sin, d_raw);
  if (norm.defined()) gradient.add(names.norm, d_norm);
}

at::Tensor output_norm(Mixer mixer, const MixerCall& call) {
  return mixer == Mixer::kLightning ? call.weights.find("o_norm.weight") : at::Tensor();
}

}  // namespace

at::Tensor project_forward(Mixer mixer, const MixerCall& call, const at::Tensor& x, Heads& heads) {
  const ModelConfig& c = call.config;
  const Place place = place_of(mixer, c);
  at::Tensor all;  // made when first asked for: a recompute may find everything
  auto columns = [&](int64_t begin, int64_t end) {
    if (!all.defined()) all = projected(mixer, call, x);
    return all.narrow(1, begin, end - begin);
  };
  if (call.saved) call.saved->keep("mixer_input", x, Cost::kElementwise);
  heads.q = norm_and_rotate(mixer, call, kQ, [&] { return columns(place.q, place.k); });
  heads.k = norm_and_rotate(mixer, call, kK, [&] { return columns(place.k, place.v); });
  heads.v = find_or_make(call.saved, "v", Cost::kProduct, [&] {
    return dense_columns(by_head(columns(place.v, place.z), c.head_size));
  });
  if (place.end == place.z) return {};
  return find_or_make(call.saved, "z", Cost::kProduct, [&] {
    const at::Tensor z = columns(place.z, place.end);
    return call.saved ? dense_columns(z) : z;
  });
}

ProjectionGradient empty_projection_gradient(Mixer mixer, const MixerCall& call,
                                             const at::Tensor& like) {
  const int64_t head_size = call.config.head_size;
  const Place place = place_of(mixer, call.config);
  ProjectionGradient d;
  d.all = at::empty({like.size(0), place.end}, like.options());
  auto columns = [&](int64_t begin, int64_t end) { return d.all.narrow(1, begin, end - begin); };
  d.q = by_head(columns(place.q, place.k), head_size);
  d.k = by_head(columns(place.k, place.v), head_size);
  d.v = by_head(columns(place.v, place.z), head_size);
  if (place.end > place.z) d.z = columns(place.z, place.end);
  return d;
}

at::Tensor project_backward(Mixer mixer, const MixerCall& call, const Heads& d_heads,
                            const ProjectionGradient& d, Gradient& gradient) {
  norm_and_rotate_backward(mixer, call, kQ, d_heads.q, d.q, gradient);
  norm_and_rotate_backward(mixer, call, kK, d_heads.k, d.k, gradient);
  copy_columns(d.v, d_heads.v);
  const std::string last = group_names(mixer, call).last_weight;
  add_bias_gradients(mixer, call, d.all, gradient);
  return linear_backward(call.env.matmul, d.all, call.saved->take("mixer_input"),
                         {call.weights, gradient, "q_proj.weight", last}, call.wants_dx);
}

at::Tensor output_forward(Mixer mixer, const MixerCall& call, const at::Tensor& o,
                          const at::Tensor& z) {
  const at::Tensor norm = output_norm(mixer, call);
  at::Tensor gated = o, rstd;
  if (z.defined()) {
    std::tie(gated, rstd) = gated_norm_forward(o, z, norm, call.config.rms_eps);
  } else if (norm.defined()) {
    std::tie(gated, rstd) = rmsnorm_forward(o, norm, call.config.rms_eps);
  }
  if (call.saved) {
    if (!gated.is_same(o)) call.saved->keep("gated", gated, Cost::kElementwise);
    if (rstd.defined()) call.saved->keep("gated_rstd", rstd, Cost::kElementwise);
  }
  if (!call.wants_output) return {};
  return linear_forward(call.env.matmul, gated, call.weights["o_proj.weight"],
                        call.weights.find("o_proj.bias"));
}

at::Tensor output_backward(Mixer mixer, const MixerCall& call, const at::Tensor& dy,
                           const at::Tensor& o, at::Tensor dz, Gradient& gradient) {
  const at::Tensor norm = output_norm(mixer, call);
  const bool changed = dz.defined() || norm.defined();
  const at::Tensor d_gated =
      linear_backward(call.env.matmul, dy, changed ? call.saved->take("gated") : o,
                      {call.weights, gradient, "o_proj.weight", "o_proj.weight"});
  gradient.add_bias("o_proj.bias", "o_proj.bias", dy);
  if (!changed) return d_gated;
  const at::Tensor rstd = norm.defined() ? call.saved->take("gated_rstd") : at::Tensor();
  at::Tensor d_o, d_norm;
  if (dz.defined()) {
    std::tie(d_o, std::ignore, d_norm) =
        gated_norm_backward(d_gated, o, call.saved->take("z"), norm, rstd, dz);
  } else {
    std::tie(d_o, d_norm) = rmsnorm_backward(d_gated, o, norm, rstd);
  }
  if (norm.defined()) gradient.add("o_norm.weight", d_norm);
  return d_o;
}

}  // namespace sala
