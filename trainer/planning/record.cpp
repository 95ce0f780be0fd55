// Facts by name.
#include "trainer/planning/record.h"

#include "trainer/planning/flops.h"
#include "trainer/recipe/recipe.h"

namespace sala {

nlohmann::json source_record(const PlanContext& context) {
  const ModelConfig& c = context.source;
  return {{"folder", context.recipe.source}, {"family", c.family},
          {"layers", c.num_layers},          {"width", c.width},
          {"ffn_width", c.ffn_width},        {"heads", c.num_heads},
          {"kv_heads", c.num_kv_heads},      {"head_size", c.head_size},
          {"vocabulary", c.vocab_size},      {"context", c.max_position},
          {"parameters", num_parameters(c)}};
}

nlohmann::json plan_record(const PlanContext& context) {
  nlohmann::json stages = nlohmann::json::array();
  for (const auto& stage : context.recipe.stages) {
    const StagePlan plan = stage->plan(context);
    stages.push_back({{"name", stage->name},
                      {"type", stage->type()},
                      {"steps", plan.steps},
                      {"tokens", plan.tokens},
                      {"flops", plan.flops},
                      {"memory_bytes", plan.memory_bytes()}});
  }
  return stages;
}

}  // namespace sala
