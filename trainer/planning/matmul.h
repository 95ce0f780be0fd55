// Which products of a stage's blocks run in FP8, for people.
#pragma once

#include <cstdint>
#include <string>

#include "model/weights/products.h"

namespace sala {

// Of a model whose ranks run `tokens` at once: the products in FP8, and those that are not with the
// reason; empty where FP8 is not asked for.
// `of_feed_forward`: tokens at once there, where they are fewer (model/feed_forward.h).
std::string matmul_text(const ModelConfig& config, int64_t tokens, const Matmul& matmul,
                        int64_t of_feed_forward = 0);

}  // namespace sala
