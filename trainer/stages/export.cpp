// Writes the model as a Hugging Face folder that other people's software loads.
#include <fmt/format.h>

#include "trainer/checks/target_folder.h"
#include "trainer/folder/export_student.h"
#include "trainer/folder/export_target.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/recipe.h"
#include "trainer/stages/one_step.h"

namespace sala {

namespace {

class ExportStage : public OneStepStage {
 public:
  std::string type() const override { return "export"; }

  void describe(Fields& fields) override {
    fields.path("folder", folder_, Need::kRequired,
                "Where the checkpoint goes; must not exist yet, or be empty.");
    fields.count("max_shard_bytes", max_shard_bytes_, Need::kOptional,
                 "Largest safetensors file, in bytes.", {1, kMostTokens});
  }

  void check(const Recipe& recipe, const std::string& path, Problems& problems) const override {
    check_folder(recipe, path, problems);
    if (recipe.num_kept() > 0 && recipe.model.qk_norm == "keep") {
      problems.add(path,
                   "the minicpm_sala format has no QK-norm on kept layers: use model.qk_norm: "
                   "drop, or remove the export stage");
    }
  }

  // Full by the time it is needed, or somebody else's.
  void check_folder(const Recipe& recipe, const std::string& path, Problems& problems) const {
    if (!problems.knows(path + ".folder")) return;
    for (const auto& [key, other] :
         {std::pair{"run.folder", recipe.run.folder}, {"source", recipe.source}}) {
      if (!problems.knows(key) || other.empty() || !lies_in(other, folder_)) continue;
      problems.add(path + ".folder", fmt::format("{} would hold {}, {}: choose a folder of its own",
                                                 shown(folder_), key, shown(other)));
    }
    for (const char* own : {"/checkpoints", "/scores", "/stores"}) {
      if (!problems.knows("run.folder") || !lies_in(folder_, recipe.run.folder + own)) continue;
      problems.add(path + ".folder",
                   fmt::format("{} is a folder of the run itself: choose another", shown(folder_)));
    }
    for (const auto& stage : recipe.stages) {
      const auto* other = dynamic_cast<const ExportStage*>(stage.get());
      if (other == this) break;
      if (other != nullptr && lies_in(other->folder_, folder_)) {
        problems.add(path + ".folder",
                     fmt::format("{} exports to {} already", other->name, shown(other->folder_)));
      }
    }
  }

  void check_inputs(const StageInputs& inputs, Problems& problems) override {
    if (!inputs.writes) return;
    const std::string maker = run_as_maker_if_known(inputs.recipe.run.folder);
    const std::string why_not = why_no_export(folder_, maker);
    if (!why_not.empty()) problems.add(path + ".folder", why_not);
  }

  StagePlan plan(const PlanContext& context) const override {
    StagePlan plan = plan_forward(context, 0, 1, true);
    plan.steps = 1;
    plan.writes = {{path + ".folder", folder_, "export",
                    2.0 * static_cast<double>(num_parameters(context.hybrid))}};
    return plan;
  }

  bool changes_model() const override { return false; }
  void look_after_end(Run& run, bool model_is_final) override {
    bool there = true;
    run.world.together("export to " + folder_, [&] {
      if (run.world.rank() == 0) there = has_export(folder_);
    });
    if (!run.world.any(!there)) return;
    run.metrics.note(fmt::format("stage {}: the export {} is gone{}", name, folder_,
                                 model_is_final ? ": making it again"
                                                : ", and the model was trained further since: "
                                                  "--from its checkpoint --export makes it again"));
    if (model_is_final) work(run);
  }

 protected:
  void work(Run& run) override {
    std::string maker;
    run.world.together("run folder " + run.folder, [&] {
      if (run.world.rank() == 0) maker = run_as_maker(run.folder);
    });
    for (const std::string& line : export_student(run, folder_, maker, max_shard_bytes_)) {
      run.metrics.note(line);
    }
  }

 private:
  std::string folder_;
  int64_t max_shard_bytes_ = 5'000'000'000;
};

}  // namespace

std::unique_ptr<Stage> make_export_stage() { return std::make_unique<ExportStage>(); }

}  // namespace sala
