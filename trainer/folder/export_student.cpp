// Masters and recipe of a run as an exported folder with its model card.
#include "trainer/folder/export_student.h"

#include <fmt/format.h>

#include <filesystem>
#include <random>

#include "data/files/atomic_file.h"
#include "data/files/hash.h"
#include "trainer/folder/export.h"
#include "trainer/folder/master_tensors.h"
#include "trainer/folder/model_card.h"
#include "trainer/folder/reader.h"

namespace sala {

namespace fs = std::filesystem;

namespace {

std::vector<std::string> write_student(Run& run, const ModelConfig& config, MasterTensors& masters,
                                       const std::string& folder, const std::string& maker,
                                       int64_t max_shard_bytes) {
  std::vector<Layout> layouts;
  for (const LayoutPtr& layout : run.student->model.layouts()) layouts.push_back(*layout);
  ExportOptions options;
  options.folder = folder;
  options.maker = maker;
  options.source_folder = run.recipe.source;
  if (config.is_hybrid() == run.source.is_hybrid()) {  // no swap has changed its format
    options.source_config = read_config_json(run.recipe.source);
  }
  options.max_shard_bytes = max_shard_bytes;
  options.model_card = model_card(run, config);
  return export_model(
      config, layouts, [&](const std::string& name) { return masters.tensor(name); }, options);
}

}  // namespace

std::vector<std::string> export_student(Run& run, const std::string& folder,
                                        const std::string& maker, int64_t max_shard_bytes) {
  std::vector<std::string> lines;
  if (!run.student) {
    throw SharedError("nothing to export: this run has not converted or trained a model");
  }
  const bool writes = run.world.rank() == 0;
  MasterTensors masters(run.student->parameters, writes);
  run.world.together("export to " + folder, [&] {
    if (!writes) return;
    lines =
        write_student(run, run.student->model.config(), masters, folder, maker, max_shard_bytes);
  });
  run.metrics.event({{"event", "export"}, {"folder", folder}, {"notes", lines}});
  return lines;
}

std::string run_as_maker(const std::string& run_folder) {
  const std::string path = run_folder + "/run_id";
  if (!path_exists(path)) {
    std::random_device random;
    write_file_atomically(path, fmt::format("{:08x}{:08x}\n", random(), random()));
  }
  return run_as_maker_if_known(run_folder);
}

std::string run_as_maker_if_known(const std::string& run_folder) {
  const std::string path = run_folder + "/run_id";
  if (!path_exists(path)) return "";
  std::string id = read_text_file(path);
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return "run " + id;
}

// A hash: the marker is published with the export, paths of this machine need not be.
std::string checkpoint_as_maker(const std::string& checkpoint) {
  const std::string path = fs::weakly_canonical(checkpoint).string();
  return "checkpoint " + xxh3_64_hex(path.data(), path.size());
}

}  // namespace sala
