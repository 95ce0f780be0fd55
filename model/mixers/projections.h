// What all mixers share around their attention: one product for q, k, v and the gate z with QK-norm
// and rotation before it, gate, norm and o_proj after it.
#pragma once

#include "model/mixers/mixers.h"

namespace sala {

struct Heads {
  at::Tensor q;  // (T, NH, HS)
  at::Tensor k;  // (T, NKV, HS)
  at::Tensor v;  // (T, NKV, HS)
};

// Gradients at the projections, side by side as in the weights' group: dq | dk | dv | dz.
struct ProjectionGradient {
  at::Tensor all;      // (T, NH * HS + 2 * NKV * HS + [NH * HS])
  at::Tensor q, k, v;  // columns of it, by head as in Heads
  at::Tensor z;        // (T, NH * HS), likewise; undefined without a gate
};

// Keeps q, k, v, and z for output_forward; z is returned (undefined without a gate).
at::Tensor project_forward(Mixer mixer, const MixerCall& call, const at::Tensor& x, Heads& heads);
ProjectionGradient empty_projection_gradient(Mixer mixer, const MixerCall& call,
                                             const at::Tensor& like);
// From the gradients of q, k, v (as in Heads) and d.z, which is written already. Returns dx.
at::Tensor project_backward(Mixer mixer, const MixerCall& call, const Heads& d_heads,
                            const ProjectionGradient& d, Gradient& gradient);

// o (T, NH * HS) -> y (T, C).
at::Tensor output_forward(Mixer mixer, const MixerCall& call, const at::Tensor& o,
                          const at::Tensor& z);
// Returns do (T, NH * HS); dz is written to `dz` where there is a gate.
at::Tensor output_backward(Mixer mixer, const MixerCall& call, const at::Tensor& dy,
                           const at::Tensor& o, at::Tensor dz, Gradient& gradient);

}  // namespace sala
