// The attention of each mixer, between its projections and its output: what tells the mixers apart.
// Heads as the projections give them; o (T, NH * HS).
#pragma once

#include "model/mixers/projections.h"

namespace sala {

// Keeps "attention" (o) and what backward needs beside it.
at::Tensor attend_softmax(Mixer mixer, const MixerCall& call, const Heads& heads);
at::Tensor attend_lightning(const MixerCall& call, const Heads& heads);
// d_o and o (T, NH * HS); gradients as in Heads.
Heads attend_softmax_backward(Mixer mixer, const MixerCall& call, const at::Tensor& d_o,
                              const at::Tensor& o, const Heads& heads);
Heads attend_lightning_backward(const MixerCall& call, const at::Tensor& d_o, const Heads& heads);

}  // namespace sala
