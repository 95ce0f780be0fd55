// The run in a table: what each evaluation measured, in order.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace sala {

// One row per evaluation: loss and KL per source, needle rate per length. Plain text.
std::string evaluation_table(const nlohmann::json& evaluations);

}  // namespace sala
