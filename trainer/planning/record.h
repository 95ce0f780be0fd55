// Source and plan as the start of a run tells them in metrics.jsonl.
#pragma once

#include <nlohmann/json.hpp>

#include "trainer/stage.h"

namespace sala {

// {"folder", "family", "layers", "width", …, "parameters"} of the source model.
nlohmann::json source_record(const PlanContext& context);
// Of every stage, in order: [{"name", "type", "steps", "tokens", "flops", "memory_bytes"}]. FLOPs
// of all ranks together, memory of one.
nlohmann::json plan_record(const PlanContext& context);

}  // namespace sala
