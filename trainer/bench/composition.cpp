// The lightning mixer from LibTorch's own operators; formulas as in kernels/ops.h.
#include "trainer/bench/composition.h"

#include <cmath>

namespace sala {

namespace {

constexpr int64_t kChunk = 128;

at::Tensor norm_and_rope(const at::Tensor& x, const at::Tensor& weight, const MixerInputs& in) {
  const at::Tensor wide = at::rms_norm(x, {x.size(2)}, weight, in.eps).to(at::kFloat);
  const auto half = wide.chunk(2, -1);
  const at::Tensor cos = in.cos.unsqueeze(1), sin = in.sin.unsqueeze(1);
  return at::cat({half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin}, -1)
      .to(x.scalar_type());
}

// Chunks of equal documents, the last one of each padded with zeros.
struct Chunks {
  int64_t D, length, n, NH, HS;

  Chunks(const at::Tensor& q, int64_t documents)
      : D(documents),
        length(q.size(0) / documents),
        n((length + kChunk - 1) / kChunk),
        NH(q.size(1)),
        HS(q.size(2)) {}

  // (T, NH, HS) -> (D * NH * n, kChunk, HS)
  at::Tensor cut(const at::Tensor& x) const {
    const at::Tensor padded =
        at::constant_pad_nd(x.view({D, length, NH, HS}), {0, 0, 0, 0, 0, n * kChunk - length});
    return padded.view({D, n, kChunk, NH, HS})
        .permute({0, 3, 1, 2, 4})
        .reshape({D * NH * n, kChunk, HS});
  }

  // The way back, to (T, NH * HS).
  at::Tensor join(const at::Tensor& x) const {
    return x.view({D, NH, n * kChunk, HS})
        .narrow(2, 0, length)
        .transpose(1, 2)
        .reshape({D * length, NH * HS});
  }

  // x (D * NH * n, X, Y) times a weight that broadcasts over (NH, n, X, Y).
  at::Tensor weighted(const at::Tensor& x, const at::Tensor& weight) const {
    return (x.view({D, NH, n, x.size(1), x.size(2)}) * weight).view_as(x);
  }
};

at::Tensor attention(const at::Tensor& q_THD, const at::Tensor& k_THD, const MixerInputs& in) {
  const Chunks chunks(q_THD, in.documents);
  const at::ScalarType dtype = q_THD.scalar_type();
  const at::Tensor q = chunks.cut(q_THD), k = chunks.cut(k_THD), v = chunks.cut(in.v);

  const at::Tensor s = in.slopes.view({-1, 1, 1, 1});
  const at::Tensor place = at::arange(kChunk, at::kDouble);
  const at::Tensor gap = place.unsqueeze(1) - place;
  auto on_device = [&](const at::Tensor& x) { return x.to(q.device(), at::kFloat); };
  const at::Tensor inside = on_device(in.scale * (-s * gap.masked_fill(gap < 0, INFINITY)).exp());
  const at::Tensor from_start = on_device(in.scale * (-s * (place + 1).unsqueeze(1)).exp());
  const at::Tensor to_end = on_device((-s * (kChunk - 1 - place).unsqueeze(1)).exp());
  const at::Tensor decay = on_device((-s * kChunk).exp()).view({1, chunks.NH, 1, 1});

  const at::Tensor scores = chunks.weighted(at::bmm(q, k.transpose(1, 2)), inside).to(dtype);
  const at::Tensor keys = chunks.weighted(k, to_end).to(dtype);
  const at::Tensor gained = at::bmm(keys.transpose(1, 2), v).to(at::kFloat);
  std::vector<at::Tensor> before;
  at::Tensor state = at::zeros({chunks.D, chunks.NH, chunks.HS, chunks.HS}, gained.options());
  for (const at::Tensor& gain :
       gained.view({chunks.D, chunks.NH, chunks.n, chunks.HS, chunks.HS}).unbind(2)) {
    before.push_back(state);
    state = state * decay + gain;
  }
  const at::Tensor states = at::stack(before, 2).view({-1, chunks.HS, chunks.HS}).to(dtype);
  const at::Tensor across = chunks.weighted(at::bmm(q, states), from_start);
  return chunks.join((across + at::bmm(scores, v)).to(dtype));
}

}  // namespace

at::Tensor composed_mixer(const MixerInputs& in) {
  const at::Tensor o_TC =
      attention(norm_and_rope(in.q, in.q_weight, in), norm_and_rope(in.k, in.k_weight, in), in);
  return at::rms_norm(o_TC, {o_TC.size(1)}, in.o_weight, in.eps) * at::sigmoid(in.z);
}

}  // namespace sala
