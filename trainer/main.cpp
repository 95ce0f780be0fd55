// sala-train RECIPE: runs a recipe, or checks it.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <CLI/CLI.hpp>

#include <cstdio>
#include <iostream>
#include <utility>

#include "data/file_limit.h"
#include "data/stores/patience.h"
#include "kernels/paths.h"
#include "trainer/checks/check_command.h"
#include "trainer/checks/start_check.h"
#include "trainer/evaluation/alone.h"
#include "trainer/ranks/environment.h"
#include "trainer/ranks/launch_folder.h"
#include "trainer/ranks/stop_signals.h"
#include "trainer/recipe/recipe.h"
#include "trainer/runner.h"
#include "trainer/start/fork.h"
#include "trainer/version.h"
#include "trainer/world.h"

namespace {

constexpr int kExitBadCall = 2;  // nothing has begun: arguments, recipe, device

struct Arguments {
  std::string recipe;
  std::vector<std::string> set;
  bool check = false, keys = false;
  int64_t ranks = 1;
  sala::AloneOptions alone;
  sala::RunnerOptions runner;
};

// `code` is that of an error meanwhile: checkpoints that cannot be read are no mistake of the call.
std::unique_ptr<sala::Recipe> read_recipe(const Arguments& a, int& code) {
  const std::string& from = a.runner.from;
  return sala::read_recipe(a.recipe, a.set, [&](sala::Recipe& recipe) {
    const int code_of_call = std::exchange(code, from.empty() ? 1 : code);
    sala::Beginning begin = sala::find_beginning(recipe, from);
    code = code_of_call;
    // The model of any checkpoint can be exported, whatever the recipe's stages are.
    if (!a.runner.export_to.empty() && !from.empty()) begin.known = false;
    return begin;
  });
}

// The call as a shell takes it back: words that it would change stand in quotes.
std::string command_line(int argc, char** argv) {
  std::string line = "sala-train";
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789_-+=./:,@%") == std::string::npos;
    for (size_t at = 0; !plain && (at = word.find('\'', at)) != std::string::npos; at += 4) {
      word.replace(at, 1, "'\\''");
    }
    line += plain ? " " + word : " '" + word + "'";
  }
  return line;
}

// A shell variable that is not set must not turn the call into another one.
const CLI::Validator kNamed(
    [](const std::string& text) {
      return text.empty() ? std::string("expected a path, got nothing") : std::string();
    },
    "PATH");

void add_options(CLI::App& app, Arguments& a) {
  app.add_option("recipe", a.recipe, "Recipe (YAML); every key is in recipes/README.md");
  app.add_option("--set", a.set, "Overrides: key.path=value, e.g. stages.distill.tokens=8M")
      ->allow_extra_args(false);
  CLI::Option* const check =
      app.add_flag("--check", a.check, "Check the recipe, print plan and estimates, and stop");
  app.add_option("--ranks", a.ranks, "With --check: ranks to plan for")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->needs(check);
  app.set_version_flag("--version", [] { return sala::version_text("sala-train"); });
  app.add_flag("--keys", a.keys, "Print every recipe key with its meaning, and stop");
  app.add_option(
         "--from", a.runner.from,
         "Start a new run from this checkpoint folder: after the stages it has completed, where "
         "the recipe begins with them, else at the recipe's first stage")
      ->check(kNamed);
  CLI::Option* const profile =
      app.add_option("--profile", a.runner.profile_steps,
                     "Record this many steps of each stage: RUN/profile/*.json, tables in the log")
          ->check(CLI::Range(int64_t{0}, int64_t{1000}));
  app.add_flag("--verify-data", a.runner.verify_data,
               "Read all token stores and compare their checksums, also of those that an earlier "
               "start of this run found right and that have not changed since (with --evaluate: "
               "those that it opens)");
  CLI::Option* const exports =
      app.add_option(
             "--export", a.runner.export_to,
             "Write the model of the run's newest checkpoint (or of --from) there, and stop")
          ->check(kNamed)
          ->excludes(check, profile);
  CLI::Option* const evaluate =
      app.add_option("--evaluate", a.alone.folder,
                     "Measure the model in this folder (Hugging Face, an export, or a checkpoint) "
                     "as the recipe's first evaluate stage does, and stop; no run folder is "
                     "touched")
          ->check(kNamed)
          ->excludes(check, profile, exports);
  app.add_option("--out", a.alone.out,
                 "With --evaluate: the JSON file (NAME.evaluation.json in the working folder)")
      ->check(kNamed)
      ->needs(evaluate);
}

// fmt::print throws where nobody can read any more; what we have to say is not worth that.
void complain(const std::string& message) {
  std::fputs(("sala-train: " + message + "\n").c_str(), stderr);
}

// For calls whose result is their output.
int after_output(int code) {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
  complain("the output could not be written");
  return 1;
}

// Which ways ops may go, and that the log says which they go.
void set_rules_of(const sala::RunOptions& run) {
  sala::PathRules rules{.strict = run.kernels == "strict", .deterministic = run.deterministic};
  rules.tell = [](const std::string& line, bool slow) {
    slow ? spdlog::warn("{}", line) : spdlog::info("{}", line);
  };
  sala::set_path_rules(std::move(rules));
}

// Reads that a disk refuses for a moment, by any rank: the first rank's log does not have them.
void set_patience_of(const sala::World& world) {
  sala::Patience patience;
  patience.gives_up = sala::stop_requested;
  const std::string rank = fmt::format("rank {} on {}", world.rank(), world.host());
  patience.tell = [rank](const std::string& line) {
    std::fputs(fmt::format("sala-train: warning: {}: {}\n", rank, line).c_str(), stderr);
  };
  sala::set_patience(std::move(patience));
}

// What is wrong with a recipe's text, and with it what the run would find out later.
void tell_problems(sala::Recipe& recipe, sala::World& world) {
  std::vector<std::string> warnings;
  const sala::CheckDevice device = sala::check_device(recipe.run);
  sala::preflight_on_first(
      recipe, world,
      {.device = device, .num_ranks = world.size(), .first_stage = recipe.begin.stage}, warnings);
  world.together("", [&] { recipe.problems.raise(); });  // where the first rank's text is right
}

// Mistakes of the call and the recipe are the world's: said once where all ranks make the same,
// with the rank where only some do, and no rank waits for one that has left.
int run(int* argc, char*** argv, const Arguments& a, const std::string& mistake) {
  sala::World world(argc, argv);
  if (world.rank() != 0) spdlog::set_level(spdlog::level::err);
  set_patience_of(world);
  int code_of_errors = kExitBadCall;
  int code = 0;
  try {
    std::unique_ptr<sala::Recipe> recipe;
    world.together("", [&] {
      if (!mistake.empty()) throw std::runtime_error(mistake);
      recipe = read_recipe(a, code_of_errors);
    });
    if (world.any(!recipe->problems.empty())) tell_problems(*recipe, world);
    world.use_device(recipe->run.device);
    set_rules_of(recipe->run);
    code_of_errors = 1;
    code = a.alone.folder.empty() ? sala::run_recipe(*recipe, world, a.runner)
                                  : sala::evaluate_alone(*recipe, world, a.alone);
  } catch (const sala::SharedError& error) {  // every rank has it: rank 0 tells
    if (world.rank() == 0) complain(error.what());
    code = code_of_errors;
  } catch (const c10::Error& error) {
    world.abort(error.what_without_backtrace());
  } catch (const std::exception& error) {
    world.abort(error.what());
  }
  return sala::code_for_launcher(code, world.rank() == 0);
}

int parse_and_run(int argc, char** argv) {
  CLI::App app{"Turns a full-attention language model into a sparse-linear hybrid"};
  Arguments arguments;
  arguments.runner.command = command_line(argc, argv);
  arguments.runner.program = sala::version_text("sala-train");
  add_options(app, arguments);
  std::string mistake;
  // Of ranks that each answer a question by themselves the first does.
  const bool speaks = sala::launched_rank().value_or(0) == 0;
  try {
    app.parse(argc, argv);
    if (!arguments.keys && arguments.recipe.empty()) {
      mistake = "which recipe? For example: sala-train recipes/demo_cpu.yaml";
    }
  } catch (const CLI::Success& wanted) {  // --help, --version
    if (speaks) app.exit(wanted);
    return after_output(0);
  } catch (const CLI::ParseError& error) {
    mistake = std::string(error.what()) + " (--help lists all arguments)";
  }
  arguments.alone.verify_data = arguments.runner.verify_data;
  if (mistake.empty() && (arguments.keys || arguments.check) && !speaks) return 0;
  if (mistake.empty() && arguments.keys) {
    std::fputs(sala::recipe_keys_markdown().c_str(), stdout);
    return after_output(0);
  }
  if (mistake.empty() && arguments.check) {
    int code = kExitBadCall;
    const auto recipe = read_recipe(arguments, code);
    code = sala::check_recipe(*recipe, arguments.ranks);
    std::cout.flush();
    return after_output(std::cout ? code : 1);
  }
  return run(&argc, &argv, arguments, mistake);
}

// An error that ranks have not shared: they may all make it, each alone.
void complain_alone(const std::string& message) {
  const auto rank = sala::launched_rank();
  complain(rank ? fmt::format("rank {} on {}: {}", *rank, sala::host_name(), message) : message);
}

}  // namespace

int main(int argc, char** argv) {
  sala::catch_stop_signals();
  sala::raise_file_limit();  // token stores and checkpoints are many files
  try {
    return parse_and_run(argc, argv);
  } catch (const sala::SharedError& error) {
    if (sala::launched_rank().value_or(0) == 0) complain(error.what());
  } catch (const c10::Error& error) {
    complain_alone(error.what_without_backtrace());
  } catch (const std::exception& error) {
    complain_alone(error.what());
  }
  return kExitBadCall;
}
