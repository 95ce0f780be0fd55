// All tokens at once, or tiles of them.
#include "model/feed_forward.h"

#include <algorithm>

#include "kernels/ops.h"
#include "kernels/range.h"

namespace sala {

namespace {

// The two halves of (T, 2F): gate and up, as columns.
std::pair<at::Tensor, at::Tensor> halves(const at::Tensor& both) {
  const int64_t F = both.size(1) / 2;
  return {both.narrow(1, 0, F), both.narrow(1, F, F)};
}

bool in_tiles(const BlockFrame& call, int64_t tokens) {
  const bool keeps = call.saved != nullptr && call.saved->will_forget != Recompute::kFull;
  return feed_forward_tokens(tokens, keeps) < tokens;
}

template <typename Tile>
void for_tiles(int64_t tokens, Tile&& tile) {
  const int64_t most = feed_forward_tokens(tokens, /*keeps=*/false);
  for (int64_t begin = 0; begin < tokens; begin += most) {
    tile([&, count = std::min(most, tokens - begin)](const at::Tensor& x) {
      return x.narrow(0, begin, count);
    });
  }
}

at::Tensor gate_and_up(const BlockFrame& call, const at::Tensor& u) {
  return linear_forward(call.matmul, u, call.block.group("gate_proj.weight", "up_proj.weight"));
}

at::Tensor activation(const at::Tensor& gate_up) {
  const auto [gate, up] = halves(gate_up);
  return swiglu_forward(gate, up);
}

at::Tensor add_down(const BlockFrame& call, const at::Tensor& h, const at::Tensor& act) {
  return add_linear(call.matmul, h, act, call.block["down_proj.weight"], call.config.residual_scale,
                    /*in_place=*/call.saved == nullptr);
}

at::Tensor backward(const BlockFrame& call, const at::Tensor& dy, const at::Tensor& u,
                    const at::Tensor& gate_up, at::Tensor act, Gradient& gradient) {
  const double r = call.config.residual_scale;
  const at::Tensor d_down = r == 1.0 ? dy : dy * r;
  const at::Tensor d_act =
      linear_backward(call.matmul, d_down, std::move(act),
                      {call.block, gradient, "down_proj.weight", "down_proj.weight"});
  const at::Tensor d_gate_up = at::empty_like(gate_up);
  const auto [gate, up] = halves(gate_up);
  const auto [d_gate, d_up] = halves(d_gate_up);
  swiglu_backward(d_act, gate, up, d_gate, d_up);
  return linear_backward(call.matmul, d_gate_up, u,
                         {call.block, gradient, "gate_proj.weight", "up_proj.weight"});
}

}  // namespace

at::Tensor feed_forward(const BlockFrame& call, const at::Tensor& h, const at::Tensor& u) {
  const Range range("feed-forward");
  const bool again = call.saved && call.saved->trimmed();
  if (!in_tiles(call, u.size(0))) {
    const at::Tensor gate_up =
        find_or_make(call.saved, "gate_up", Cost::kProduct, [&] { return gate_and_up(call, u); });
    const at::Tensor act = activation(gate_up);
    if (call.saved) call.saved->keep("act", act, Cost::kElementwise);
    return again ? at::Tensor() : add_down(call, h, act);
  }
  if (again) return {};
  const at::Tensor y = call.saved ? at::empty_like(h) : h;
  for_tiles(u.size(0), [&](const auto& rows) {
    const at::Tensor sum = add_down(call, rows(h), activation(gate_and_up(call, rows(u))));
    if (call.saved) rows(y).copy_(sum);
  });
  return y;
}

at::Tensor feed_forward_backward(const BlockFrame& call, const at::Tensor& dy,
                                 Gradient& block_gradient) {
  const Range range("feed-forward backward");
  Saved& saved = *call.saved;
  const at::Tensor u = saved.take("mlp_input");
  if (!in_tiles(call, u.size(0))) {
    at::Tensor act = saved.take("act");
    return backward(call, dy, u, saved.take("gate_up"), std::move(act), block_gradient);
  }
  const at::Tensor du = at::empty_like(u);
  for_tiles(u.size(0), [&](const auto& rows) {
    const at::Tensor gate_up = gate_and_up(call, rows(u));
    rows(du).copy_(backward(call, rows(dy), rows(u), gate_up, activation(gate_up), block_gradient));
  });
  return du;
}

}  // namespace sala
