// README.md of an export: the header that the hub reads, what the model is, how it was made and
// measured, how it is used.
#pragma once

#include <string>

#include "trainer/run.h"

namespace sala {

std::string model_card(const Run& run, const ModelConfig& exported);

}  // namespace sala
