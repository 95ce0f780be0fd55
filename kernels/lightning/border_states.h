// Sums of outer products towards a border, for lightning attention over a sequence that is split:
// what a run of tokens gives to the state after it, or asks of the state before it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace sala {

// Where the border lies, and with it each token's distance: exp(-slope * distance) is its weight.
enum class LightningBorder {
  kAfter,   // behind the last token, whose distance is 0
  kBefore,  // in front of the first token, whose distance is 1
};

// sum over tokens of exp(-slope * distance) a_t b_t^T: a, b (n, NH, HS), not necessarily contiguous
// in n; slopes (NH) fp64 on the CPU. Returns (NH, HS, HS) fp32/fp64. Temporaries do not grow with
// n.
at::Tensor lightning_border_sum(const at::Tensor& a, const at::Tensor& b, const at::Tensor& slopes,
                                LightningBorder border);

}  // namespace sala
