// Loss on held-out rows, and the distance to the teacher on the same tokens.
#pragma once

#include "trainer/evaluation/evaluate.h"

namespace sala {

// {loss, loss_se, tokens, by_position: [{from, to, tokens, loss}]}; with a teacher also kl, kl_se,
// top1, top1_se, and kl and top1 by position. Positions are counted from a document's first token
// in its row; buckets double: [0, 128), [128, 256), [256, 512), …
nlohmann::json evaluate_source(Run& run, const EvaluateOptions& options, const std::string& label,
                               const std::string& name, Network& network, Network* teacher);

}  // namespace sala
