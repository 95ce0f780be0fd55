// The registry of stages. A new one is its file stages/<type>.cpp, which defines
// make_<type>_stage(), and its line here.
#include "trainer/stage.h"

#define SALA_STAGES(X) \
  X(align)             \
  X(score)             \
  X(swap)              \
  X(distill)           \
  X(train)             \
  X(sft)               \
  X(evaluate)          \
  X(export)

namespace sala {

#define DECLARE(type) std::unique_ptr<Stage> make_##type##_stage();
SALA_STAGES(DECLARE)
#undef DECLARE

std::vector<std::string> stage_types() {
#define NAME(type) #type,
  return {SALA_STAGES(NAME)};
#undef NAME
}

std::unique_ptr<Stage> make_stage(const std::string& type) {
#define MAKE(name) \
  if (type == #name) return make_##name##_stage();
  SALA_STAGES(MAKE)
#undef MAKE
  return nullptr;
}

}  // namespace sala
