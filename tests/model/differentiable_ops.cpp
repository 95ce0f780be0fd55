// torch::autograd::Function for each op. forward() runs without recording; backward() calls the
// op's written backward. Documents travel in the context as a reference-counted capsule.

#include "tests/model/differentiable_ops.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <optional>

#include "kernels/ops.h"

namespace sala {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct DocumentsHolder : torch::CustomClassHolder {
  DocumentsHolder(const Documents& q, const Documents& k) : q_docs(q), k_docs(k) {}
  Documents q_docs, k_docs;
};

void save_documents(AutogradContext* ctx, const Documents& q_docs, const Documents& k_docs) {
  c10::intrusive_ptr<torch::CustomClassHolder> holder =
      c10::make_intrusive<DocumentsHolder>(q_docs, k_docs);
  ctx->saved_data["documents"] = c10::IValue::make_capsule(std::move(holder));
}

c10::intrusive_ptr<DocumentsHolder> saved_documents(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<DocumentsHolder>(
      ctx->saved_data["documents"].toCapsule());
}

Tensor dense(const Tensor& x) { return x.defined() ? x.contiguous() : x; }

// Function::apply takes an absent tensor only as an empty optional.
std::optional<Tensor> maybe(const Tensor& x) {
  return x.defined() ? std::optional<Tensor>(x) : std::nullopt;
}
Tensor or_undefined(const std::optional<Tensor>& x) { return x ? *x : Tensor(); }

// The gradient of an input, or nothing where nobody asked. `index` counts tensor arguments.
Tensor wanted(AutogradContext* ctx, size_t index, const Tensor& gradient) {
  return ctx->needs_input_grad(index) ? gradient : Tensor();
}

struct RmsnormFunction : Function<RmsnormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps) {
    auto [y, rstd] = rmsnorm_forward(x, weight, eps);
    ctx->save_for_backward({x, weight, rstd});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [dx, dweight] = rmsnorm_backward(dense(grads[0]), saved[0], saved[1], saved[2]);
    return {wanted(ctx, 0, dx), wanted(ctx, 1, dweight), Tensor()};
  }
};

struct AddRmsnormFunction : Function<AddRmsnormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& y,
                               double residual_scale, const Tensor& weight, double eps) {
    auto [h, u, rstd] = add_rmsnorm_forward(x, y, residual_scale, weight, eps);
    ctx->save_for_backward({h, weight, rstd});
    ctx->saved_data["residual_scale"] = residual_scale;
    ctx->set_materialize_grads(false);  // no zeros where only one of the two is used
    return {h, u};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    Tensor dx = dense(grads[0]), dweight;
    if (grads[1].defined()) {
      std::tie(dx, dweight) =
          add_rmsnorm_backward(dense(grads[1]), dx, saved[0], saved[1], saved[2]);
    }
    const double scale = ctx->saved_data["residual_scale"].toDouble();
    Tensor dy = wanted(ctx, 1, dx);
    if (dy.defined() && scale != 1.0) dy = dy * scale;
    return {wanted(ctx, 0, dx), dy, Tensor(), wanted(ctx, 2, dweight), Tensor()};
  }
};

struct QkNormRopeFunction : Function<QkNormRopeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x,
                        const std::optional<Tensor>& maybe_weight,
                        const std::optional<Tensor>& maybe_cos,
                        const std::optional<Tensor>& maybe_sin, double eps) {
    const Tensor weight = or_undefined(maybe_weight), cos = or_undefined(maybe_cos);
    const Tensor sin = or_undefined(maybe_sin);
    auto [y, rstd] = qk_norm_rope_forward(x, weight, cos, sin, eps);
    // The rotation alone needs no input for its backward.
    ctx->save_for_backward({weight.defined() ? x : Tensor(), weight, rstd, cos, sin});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [dx, dweight] =
        qk_norm_rope_backward(dense(grads[0]), saved[0], saved[1], saved[2], saved[3], saved[4]);
    return {wanted(ctx, 0, dx), dweight, Tensor(), Tensor(), Tensor()};
  }
};

struct SwigluFunction : Function<SwigluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    return swiglu_forward(gate, up);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [dgate, dup] = swiglu_backward(dense(grads[0]), saved[0], saved[1]);
    return {wanted(ctx, 0, dgate), wanted(ctx, 1, dup)};
  }
};

struct GatedNormFunction : Function<GatedNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& o, const Tensor& z,
                        const std::optional<Tensor>& maybe_weight, double eps) {
    const Tensor weight = or_undefined(maybe_weight);
    auto [y, rstd] = gated_norm_forward(o, z, weight, eps);
    ctx->save_for_backward({o, z, weight, rstd});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [d_o, dz, dweight] =
        gated_norm_backward(dense(grads[0]), saved[0], saved[1], saved[2], saved[3]);
    return {wanted(ctx, 0, d_o), wanted(ctx, 1, dz), dweight, Tensor()};
  }
};

struct DenseAttentionFunction : Function<DenseAttentionFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Documents& q_docs, const Documents& k_docs, double scale) {
    auto [o, lse] = dense_attention_forward(q, k, v, q_docs, k_docs, scale);
    ctx->save_for_backward({q, k, v, o, lse});
    save_documents(ctx, q_docs, k_docs);
    ctx->saved_data["scale"] = scale;
    return o;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto documents = saved_documents(ctx);
    auto [dq, dk, dv] = dense_attention_backward(
        dense(grads[0]), saved[0], saved[1], saved[2], saved[3], saved[4], documents->q_docs,
        documents->k_docs, ctx->saved_data["scale"].toDouble());
    return {wanted(ctx, 0, dq), wanted(ctx, 1, dk), wanted(ctx, 2, dv),
            Tensor(),           Tensor(),           Tensor()};
  }
};

struct BlockSparseFunction : Function<BlockSparseFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& blocks, const Documents& q_docs, const Documents& k_docs,
                        int64_t block_size, double scale) {
    auto [o, lse] =
        block_sparse_attention_forward(q, k, v, blocks, q_docs, k_docs, block_size, scale);
    ctx->save_for_backward({q, k, v, o, lse, blocks});
    save_documents(ctx, q_docs, k_docs);
    ctx->saved_data["block_size"] = block_size;
    ctx->saved_data["scale"] = scale;
    return o;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto documents = saved_documents(ctx);
    auto [dq, dk, dv] = block_sparse_attention_backward(
        dense(grads[0]), saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
        documents->q_docs, documents->k_docs, ctx->saved_data["block_size"].toInt(),
        ctx->saved_data["scale"].toDouble());
    return {wanted(ctx, 0, dq), wanted(ctx, 1, dk), wanted(ctx, 2, dv), Tensor(),
            Tensor(),           Tensor(),           Tensor(),           Tensor()};
  }
};

struct LightningFunction : Function<LightningFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& slopes,
                               const std::optional<Tensor>& maybe_initial_state,
                               const Documents& docs, double scale, bool want_final_state) {
    const Tensor initial_state = or_undefined(maybe_initial_state);
    auto [o, final_state] =
        lightning_forward(q, k, v, slopes, docs, scale, initial_state, want_final_state);
    ctx->save_for_backward({q, k, v, slopes, initial_state});
    save_documents(ctx, docs, docs);
    ctx->saved_data["scale"] = scale;
    ctx->set_materialize_grads(false);  // no state-sized zeros where the final state is unused
    if (!want_final_state) return {o};
    return {o, final_state};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor d_o = grads[0].defined() ? dense(grads[0]) : at::zeros_like(saved[0]);
    const Tensor d_final_state = grads.size() > 1 ? dense(grads[1]) : Tensor();
    auto [dq, dk, dv, d_state] = lightning_backward(
        d_o, saved[0], saved[1], saved[2], saved[3], saved_documents(ctx)->q_docs,
        ctx->saved_data["scale"].toDouble(), saved[4], d_final_state);
    return {wanted(ctx, 0, dq),
            wanted(ctx, 1, dk),
            wanted(ctx, 2, dv),
            Tensor(),
            saved[4].defined() ? d_state : Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

}  // namespace

Tensor rmsnorm(const Tensor& x, const Tensor& weight, double eps) {
  return RmsnormFunction::apply(dense(x), weight, eps);
}

std::tuple<Tensor, Tensor> add_rmsnorm(const Tensor& x, const Tensor& y, double residual_scale,
                                       const Tensor& weight, double eps) {
  auto results = AddRmsnormFunction::apply(dense(x), dense(y), residual_scale, weight, eps);
  return {results[0], results[1]};
}

Tensor qk_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& cos, const Tensor& sin,
                    double eps) {
  if (!weight.defined() && !cos.defined()) return x;
  return QkNormRopeFunction::apply(dense(x), maybe(weight), maybe(cos), maybe(sin), eps);
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  return SwigluFunction::apply(dense(gate), dense(up));
}

Tensor gated_norm(const Tensor& o, const Tensor& z, const Tensor& weight, double eps) {
  return GatedNormFunction::apply(dense(o), dense(z), maybe(weight), eps);
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Documents& q_docs,
                       const Documents& k_docs, double scale) {
  return DenseAttentionFunction::apply(dense(q), dense(k), dense(v), q_docs, k_docs, scale);
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Documents& docs,
                       double scale) {
  return dense_attention(q, k, v, docs, docs, scale);
}

std::tuple<Tensor, Tensor> lightning_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                               const Tensor& slopes, const Documents& docs,
                                               double scale, const Tensor& initial_state,
                                               bool want_final_state) {
  auto results =
      LightningFunction::apply(dense(q), dense(k), dense(v), slopes, maybe(dense(initial_state)),
                               docs, scale, want_final_state);
  return {results[0], want_final_state ? results[1] : Tensor()};
}

Tensor block_sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& blocks, const Documents& q_docs,
                              const Documents& k_docs, int64_t block_size, double scale) {
  return BlockSparseFunction::apply(dense(q), dense(k), dense(v), blocks, q_docs, k_docs,
                                    block_size, scale);
}

Tensor block_sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& blocks, const Documents& docs, int64_t block_size,
                              double scale) {
  return block_sparse_attention(q, k, v, blocks, docs, docs, block_size, scale);
}

}  // namespace sala
