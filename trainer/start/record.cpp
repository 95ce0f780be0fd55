// The first lines of a start.
#include "trainer/start/record.h"

#include <fmt/format.h>

#include "trainer/journal/own_files.h"
#include "trainer/planning/record.h"
#include "trainer/ranks/device_info.h"

namespace sala {

void record_start(Run& run, const Start& start, const RunnerOptions& options,
                  const PlanContext& context) {
  Recipe& recipe = run.recipe;
  World& world = run.world;
  Metrics& metrics = run.metrics;
  world.together("", [&] {
    if (world.rank() != 0) return;
    write_own_text(recipe.run.folder + "/" + kRecipeFile, resolved_yaml(recipe));
  });
  if (start.continues) {  // its line came after the lines that it counts
    metrics.event({{"event", "checkpoint"},
                   {"stage", start.id.stage},
                   {"step", start.id.step},
                   {"folder", start.folder}});
  }
  metrics.note(fmt::format("{} rank(s) on {}; run folder {}", world.size(),
                           device_name(world.device()), recipe.run.folder));
  const double peak = device_peak_flops(world.device());
  if (peak > 0) {
    metrics.note(
        fmt::format("MFU counts causal FLOPs against {:.0f} TFLOP/s (dense bf16 "
                    "datasheet peak)",
                    peak / 1e12));
  }
  metrics.event({{"event", "start"},
                 {"ranks", world.size()},
                 {"peak_flops", peak},
                 {"device", device_name(world.device())},
                 {"stage_index", start.id.stage_index},
                 {"step", start.id.step},
                 {"command", options.command},
                 {"program", options.program},
                 {"source", source_record(context)},
                 {"stages", plan_record(context)}});
  if (start.reader && !start.continues) {  // what another run's metrics have told
    metrics.event(
        {{"event", "fork"},
         {"from", start.folder},
         {"evaluations", run.evaluations},
         {"scores", run.scores},
         {"kept", run.student ? kept_layers(run.student->model.config()) : std::vector<int64_t>{}},
         {"verdicts", run.verdicts}});
  }
}

}  // namespace sala
