// An evaluation in lines for people.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sala {

// `result`: of evaluate_model. One line for each source, for needles, for each multiple-choice set
// and for each length of tasks; none begins with the label.
std::vector<std::string> evaluation_lines(const nlohmann::json& result);

}  // namespace sala
