// The block lists that a hybrid's sparse layers choose in a forward pass.
#pragma once

#include <vector>

#include "model/model.h"
#include "trainer/lists/file.h"

namespace sala {

// Runs one document, on the weights' device, through the model and takes the lists of every sparse
// layer, or of the one that `layer` names (-1: all). Errors: std::runtime_error where no layer of
// the model is sparse, that one is not, or the document is too short to be attended sparsely.
BlockLists collect_block_lists(const Model& model, Lender& weights, const std::vector<int64_t>& ids,
                               int64_t layer, at::Device device);

}  // namespace sala
