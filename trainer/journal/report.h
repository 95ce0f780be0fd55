// The run in a table: what each evaluation measured, in order.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sala {

// One row per evaluation: loss, KL and top-1 per source, needle rate per length; below it, where
// there are any, mean task score per length and accuracy of multiple choice. Plain text.
std::string evaluation_table(const nlohmann::json& evaluations);

// The table and, below it, what went wrong, a line each.
std::string report_text(const nlohmann::json& evaluations,
                        const std::vector<std::string>& verdicts);

}  // namespace sala
