// A model and its parameters: the teacher, the student.
#pragma once

#include "model/model.h"
#include "trainer/parameters.h"

namespace sala {

struct Network {
  Network(ModelConfig config, const Parameters::Options& options, const ParameterComms& comms)
      : model(std::move(config)),
        parameters(model.layouts(), with_units(options, model), comms) {}

  // Which parts are leased together, in the order of a pass.
  static Parameters::Options with_units(Parameters::Options options, const Model& model) {
    for (const auto& unit : model.units()) options.units.push_back(unit->parts);
    options.units.push_back(model.head_parts());
    return options;
  }

  Model model;
  Parameters parameters;
};

}  // namespace sala
