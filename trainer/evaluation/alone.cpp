// Opening a model that no run is about, and measuring it.
#include "trainer/evaluation/alone.h"

#include <fmt/format.h>

#include "data/files/atomic_file.h"
#include "data/files/input_file.h"
#include "data/files/output_file.h"
#include "trainer/checks/start_check.h"
#include "trainer/checks/verify_stores.h"
#include "trainer/evaluation/evaluate.h"
#include "trainer/folder/reader.h"
#include "trainer/folder/shared_reading.h"
#include "trainer/journal/report.h"
#include "trainer/ranks/agreement.h"
#include "trainer/ranks/stop_signals.h"
#include "trainer/run.h"

namespace sala {

namespace {

std::string name_of(std::string folder) {
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  const size_t slash = folder.find_last_of('/');
  return slash == std::string::npos ? folder : folder.substr(slash + 1);
}

// What the recipe's first evaluate stage needs, and nothing of the others.
void check_stage(Recipe& recipe, World& world, Metrics& metrics) {
  int64_t stage = 0;
  while (recipe.stages[stage]->type() != "evaluate") ++stage;
  std::vector<std::string> warnings;
  const CheckDevice device = smallest_device(world);
  preflight_on_first(recipe, world,
                     {.device = device,
                      .num_ranks = world.size(),
                      .ranks_per_node = static_cast<int64_t>(world.max(world.local_size())),
                      .first_stage = stage,
                      .writes = false,
                      .num_stages = 1},
                     warnings);
  for (const std::string& line : warnings) metrics.note("warning: " + line);
}

void check_fits(const Run& run, const std::string& folder, const ModelConfig& config) {
  if (config.vocab_size != run.source.vocab_size) {
    throw std::runtime_error(fmt::format(
        "{} has a vocabulary of {} ids, the recipe's source {} one of {}: their data is not the "
        "same; name a recipe whose source fits",
        folder, config.vocab_size, run.recipe.source, run.source.vocab_size));
  }
  const std::string hash = tokenizer_of(folder, config).hash;
  if (!hash.empty() && !run.tokenizer.hash.empty() && hash != run.tokenizer.hash) {
    throw std::runtime_error(fmt::format(
        "{}/tokenizer.json is another one than that of the recipe's source {}: its prepared data "
        "is not for this model",
        folder, run.recipe.source));
  }
}

// From a Hugging Face folder, in the compute dtype.
std::unique_ptr<Network> open_folder(Run& run, const std::string& folder) {
  ModelConfig config;
  run.world.together(folder, [&] {
    config = read_model_config(folder);
    check_fits(run, folder, config);
  });
  auto network =
      std::make_unique<Network>(config, run.holding(/*trains=*/false), run.parameter_comms());
  read_on_all(
      run.world, {folder, network->model.layouts()}, [](size_t) { return true; },
      [&](size_t p, Weights& part) { network->parameters.set_whole(p, part.flat); });
  return network;
}

void load_checkpoint(Run& run, Checkpoints& checkpoints, const std::string& folder) {
  run.parameter_comms();  // made by all ranks together, while none has a reason to throw
  run.world.together("loading " + folder, [&] {
    const std::unique_ptr<StateReader> reader = checkpoints.open_on_all(folder);
    if (!reader->json("run").at("has_student").get<bool>()) {
      throw std::runtime_error(
          "it is of before the swap and holds no converted model; evaluate "
          "the source's folder, or a later checkpoint");
    }
    run.load(*reader);
  });
  run.publish_loaded();
}

// That an evaluation opens.
std::set<std::string> sources_of(const EvaluateOptions& options) {
  std::set<std::string> sources(options.sources.begin(), options.sources.end());
  if (!options.needle_lengths.empty()) sources.insert(options.needle_source);
  return sources;
}

void write_result(const std::string& path, const nlohmann::json& result) {
  // A run's name may hold bytes that are no UTF-8.
  write_file_atomically(
      path, result.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

// By default the result is called like the folder, of which there may be two.
void check_result_path(const std::string& path, const std::string& folder, bool is_default) {
  check_output_file(path, is_default ? "evaluation of " + folder : "evaluation", [&] {
    constexpr int64_t kMostBytes = int64_t{1} << 30;
    if (!is_json_with(path, {"folder", "recipe", "evaluation"})) return false;
    return !is_default || read_json_file(path, kMostBytes).at("folder") == folder;
  });
}

}  // namespace

int evaluate_alone(Recipe& recipe, World& world, const AloneOptions& alone) {
  const std::string& folder = alone.folder;
  const EvaluateOptions* options = evaluate_options(recipe);
  const std::string path = alone.out.empty() ? name_of(folder) + ".evaluation.json" : alone.out;
  bool is_model = false;
  world.together("", [&] {
    if (world.rank() == 0) check_result_path(path, folder, alone.out.empty());
    if (options == nullptr) {
      throw std::runtime_error(recipe.path +
                               " has no evaluate stage, whose options --evaluate takes");
    }
    is_model = path_exists(folder + "/config.json");
    if (is_model || path_exists(folder + "/manifest.json")) return;
    throw std::runtime_error(folder +
                             ": expected a model folder (config.json) or a checkpoint "
                             "(manifest.json, as in RUN/checkpoints/...)");
  });
  RunnerOptions call;
  call.from = folder;
  require_equal_facts(world, facts_of_start(world, recipe, call));
  const std::unique_ptr<Metrics> metrics = Metrics::on_terminal(world.rank() == 0);
  check_stage(recipe, world, *metrics);
  std::unique_ptr<Run> run;
  world.together("source model " + recipe.source,
                 [&] { run = std::make_unique<Run>(recipe, world, *metrics); });
  require_equal_files(*run);
  const auto stopped = [&] {
    metrics->note("stopped on a signal; nothing was written");
    return kExitCheckpointed;
  };
  if (!verify_stores_of(*run, sources_of(*options), alone.verify_data)) return stopped();
  Checkpoints checkpoints(recipe.run.folder, world, recipe.run.keep_checkpoints);
  if (is_model) {
    run->student = open_folder(*run, folder);
  } else {
    load_checkpoint(*run, checkpoints, folder);
  }
  nlohmann::json result;
  try {
    result = evaluate_model(*run, *options, name_of(folder), *run->student, false);
  } catch (const Stopped&) {
    return stopped();
  }
  tell_evaluation(*run, result, nlohmann::json::object());
  world.together(path, [&] {
    if (world.rank() != 0) return;
    write_result(path, {{"folder", folder}, {"recipe", recipe.path}, {"evaluation", result}});
  });
  metrics->note("written to " + path + "\n" + evaluation_table(nlohmann::json::array({result})));
  return 0;
}

}  // namespace sala
