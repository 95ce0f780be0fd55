// Masters and recipe of a run as an exported folder with its model card.
#include "trainer/export_run.h"

#include <fmt/format.h>
#include <filesystem>
#include <unordered_map>

#include "data/atomic_file.h"
#include "trainer/hf_folder.h"
#include "trainer/report.h"

namespace sala {

namespace {

std::string model_card(const Run& run, const ModelConfig& hybrid) {
  std::string kept;
  for (int64_t layer : kept_layers(hybrid)) kept += fmt::format(" {}", layer);
  return fmt::format(
      "# Hybrid of {}\n\nMade by sala-train: {} of {} layers keep (block-sparse) softmax attention "
      "(layers{}); the others are lightning attention. Tokens seen in conversion: {}.\n\n"
      "Held-out results (nats per token; KL to the source model):\n\n```\n{}```\n\n"
      "Recipe, every value stated:\n\n```yaml\n{}```\n",
      std::filesystem::path(run.recipe.source).filename().string(), kept_layers(hybrid).size(),
      hybrid.num_layers, kept, run.tokens_seen, report_text(run.evaluations, run.verdicts),
      resolved_yaml(run.recipe));
}

// An export that this very run had finished when it was killed before its checkpoint: made again.
void remove_same_export(const std::string& folder, const std::string& card) {
  const std::string path = folder + "/README.md";
  if (std::filesystem::exists(path) && read_text_file(path) == card) {
    std::filesystem::remove_all(folder);
  }
}

}  // namespace

void export_student(Run& run, const std::string& folder, int64_t max_shard_bytes) {
  std::vector<std::string> lines;
  run.world.together("export to " + folder, [&] {
    if (!run.student.model || !run.student.model->config().is_hybrid()) {
      throw std::runtime_error("nothing to export: no swap has made a hybrid in this run yet");
    }
    if (run.world.rank() != 0) return;
    const Model& model = *run.student.model;
    std::vector<Layout> layouts;
    std::unordered_map<std::string, std::pair<size_t, const Entry*>> where;
    for (const TrainedPart& part : run.student.parts) layouts.push_back(part.weights->layout());
    for (size_t p = 0; p < layouts.size(); ++p) {
      for (const Entry& entry : layouts[p].entries) where[entry.name] = {p, &entry};
    }
    auto tensor = [&](const std::string& name) {
      const auto& [p, entry] = where.at(name);
      return run.student.parts[p]
          .master.narrow(0, entry->offset, entry->num_elements())
          .view(entry->shape)
          .cpu();
    };
    ExportOptions options;
    options.folder = folder;
    options.tokenizer_folder = run.recipe.source;
    options.max_shard_bytes = max_shard_bytes;
    options.model_card = model_card(run, model.config());
    remove_same_export(folder, options.model_card);
    lines = export_hybrid(model.config(), layouts, tensor, options);
  });
  for (const std::string& line : lines) run.metrics.note(line);
  run.metrics.event({{"event", "export"}, {"folder", folder}, {"notes", lines}});
}

}  // namespace sala
