// The frame of a mixer: projections, attention, output; and the same way back.
#include "model/mixers/mixers.h"

#include "kernels/range.h"
#include "model/mixers/attention.h"

namespace sala {

at::Tensor mixer_forward(Mixer mixer, const MixerCall& call, const at::Tensor& x) {
  const bool again = call.saved && call.saved->trimmed();
  const bool is_lightning = mixer == Mixer::kLightning;
  const Range range(is_lightning ? "lightning mixer" : "softmax mixer");
  Heads heads;
  const at::Tensor z_TC = project_forward(mixer, call, x, heads);
  at::Tensor o_TC;
  {
    const Range attention(is_lightning ? "lightning attention" : "softmax attention");
    o_TC = is_lightning ? attend_lightning(call, heads) : attend_softmax(mixer, call, heads);
  }
  const at::Tensor y_TC = output_forward(mixer, call, o_TC, z_TC);
  if (call.env.tap && !again) (*call.env.tap)(call.layer, x, o_TC, y_TC);
  return y_TC;
}

at::Tensor mixer_backward(Mixer mixer, const MixerCall& call, const at::Tensor& dy,
                          Gradient& gradient) {
  TORCH_CHECK(call.saved, "mixer backward: expected what the forward kept");
  const bool is_lightning = mixer == Mixer::kLightning;
  const Range range(is_lightning ? "lightning mixer backward" : "softmax mixer backward");
  const ProjectionGradient d = empty_projection_gradient(mixer, call, dy);
  Heads d_heads;
  {
    const at::Tensor o_TC = call.saved->take("attention");
    const at::Tensor d_o_TC = output_backward(mixer, call, dy, o_TC, d.z, gradient);
    const Heads heads{call.saved->take("q"), call.saved->take("k"), call.saved->take("v")};
    const Range attention(is_lightning ? "lightning attention backward"
                                       : "softmax attention backward");
    d_heads = is_lightning ? attend_lightning_backward(call, d_o_TC, heads)
                           : attend_softmax_backward(mixer, call, d_o_TC, o_TC, heads);
  }
  return project_backward(mixer, call, d_heads, d, gradient);
}

}  // namespace sala
