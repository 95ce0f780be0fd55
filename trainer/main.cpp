// sala-train RECIPE: runs a recipe, or checks it.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <CLI/CLI.hpp>

#include <cstdlib>

#include "trainer/check.h"
#include "trainer/recipe.h"
#include "trainer/run_folder.h"
#include "trainer/runner.h"
#include "trainer/world.h"

namespace {

struct Arguments {
  std::string recipe;
  std::vector<std::string> set;
  bool check = false, keys = false;
  int64_t ranks = 1;
  sala::RunnerOptions runner;
};

void add_options(CLI::App& app, Arguments& a) {
  app.add_option("recipe", a.recipe, "Recipe (YAML); every key is in recipes/README.md");
  app.add_option("--set", a.set, "Overrides: key.path=value, e.g. stages.distill.tokens=8M")
      ->allow_extra_args(false);
  app.add_flag("--check", a.check, "Check the recipe, print plan and estimates, and stop");
  app.add_option("--ranks", a.ranks, "With --check: ranks to plan for");
  app.add_flag("--keys", a.keys, "Print every recipe key with its meaning, and stop");
  app.add_option("--from", a.runner.from, "Start a new run from this checkpoint folder");
  app.add_option("--export", a.runner.export_to,
                 "Write the model of the run's newest checkpoint (or of --from) there, and stop");
}

int run(int* argc, char*** argv, const Arguments& a) {
  std::unique_ptr<sala::Recipe> recipe = sala::read_recipe(a.recipe, a.set);
  if (a.check) return sala::check_recipe(*recipe, a.ranks);
  sala::catch_stop_signals();
  sala::World world(argc, argv, recipe->run.device);
  if (world.rank() != 0) spdlog::set_level(spdlog::level::err);
  try {
    return sala::run_recipe(*recipe, world, a.runner);
  } catch (const sala::SharedError& error) {  // every rank has it: rank 0 tells
    if (world.rank() == 0) fmt::print(stderr, "sala-train: {}\n", error.what());
    return 1;
  } catch (const c10::Error& error) {
    world.abort(error.what_without_backtrace());
  } catch (const std::exception& error) {
    world.abort(error.what());
  }
}

// Before MPI has started: whether this is the rank that speaks.
bool first_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::string(rank) == "0";
  }
  return true;
}

void complain(const char* message) {
  if (first_rank()) fmt::print(stderr, "sala-train: {}\n", message);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Turns a full-attention language model into a sparse-linear hybrid"};
  Arguments arguments;
  add_options(app, arguments);
  CLI11_PARSE(app, argc, argv);
  if (arguments.keys) {
    fmt::print("{}", sala::recipe_keys_markdown());
    return 0;
  }
  if (arguments.recipe.empty()) {
    fmt::print(stderr, "sala-train: which recipe? For example: sala-train recipes/demo_cpu.yaml\n");
    return 2;
  }
  try {
    return run(&argc, &argv, arguments);
  } catch (const c10::Error& error) {
    complain(error.what_without_backtrace());
  } catch (const std::exception& error) {
    complain(error.what());
  }
  return 2;
}
