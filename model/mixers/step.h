// The attention of a decode step: one token of each sequence of a cache (call.env.cached). Heads as
// the projections give them; o (S, NH * HS).
#pragma once

#include "model/mixers/projections.h"

namespace sala {

at::Tensor step_softmax(Mixer mixer, const MixerCall& call, const Heads& heads);
at::Tensor step_lightning(const MixerCall& call, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, double scale);

}  // namespace sala
