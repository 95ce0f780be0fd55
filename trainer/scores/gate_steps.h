// What the steps of the gates measured: all the state that their training has.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

namespace sala {

struct GateStep {
  std::vector<int64_t> rows;                // the rows that it took, by number
  std::vector<std::vector<double>> values;  // what each gave: gate_pass.h's (2 + L) numbers
};

// Means of the numbers over the step's rows, each `weights[row]` times; empty where all of these
// are 0.
std::vector<double> mean_of(const GateStep& step, std::span<const double> weights);

nlohmann::json to_json(const GateStep& step, int64_t number);
// Steps 0, 1, 2, … of `items` (item_log.h), in any order and any number of times, as far as they
// are there without a gap.
std::vector<GateStep> gate_steps(const std::vector<nlohmann::json>& items);

}  // namespace sala
