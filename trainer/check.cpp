// --check: the printed plan of a recipe and everything that would stop it.
#include "trainer/check.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <thread>

#include <fmt/format.h>
#include <fmt/ostream.h>

#include "data/source.h"
#include "model/convert.h"
#include "trainer/amount_text.h"
#include "trainer/device_info.h"
#include "trainer/flops.h"
#include "trainer/hf_folder.h"
#include "trainer/plan.h"

namespace sala {

namespace {

namespace fs = std::filesystem;

constexpr double kCpuCoreFlops = 60e9;   // fp32 matrix products, one core of a current server
constexpr double kAssumedPeak = 989e12;  // H100 SXM, dense bf16
constexpr double kAssumedMfu = 0.4;      // of models at least this wide; narrower ones reach less,
constexpr double kWideModel = 4096;      // about in proportion, because launches then take the time

// fp32 lightning mixers of all layers.
double mixer_bytes(const PlanContext& context) {
  return 4.0 * static_cast<double>(mixer_parameters(context.hybrid, Mixer::kLightning) *
                                   context.source.num_layers);
}

class Check {
 public:
  Check(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out)
      : recipe_(recipe), device_(device), num_ranks_(num_ranks), out_(out) {}

  int run() {
    fmt::print(out_, "# {}, resolved\n{}\n", recipe_.path, resolved_yaml(recipe_));
    check_data();
    check_source();
    for (const std::string& problem : problems_) fmt::print(out_, "problem: {}\n", problem);
    if (problems_.empty()) fmt::print(out_, "ok: this recipe can run\n");
    return problems_.empty() ? 0 : 2;
  }

 private:
  template <class... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void check_data() {
    for (const auto& [name, options] : recipe_.data.sources) {
      for (const std::string& pattern : options.files) {
        try {
          expand_globs({pattern});
        } catch (const std::runtime_error& error) {
          problem("data.sources.{}.files: {}", name, error.what());
        }
      }
    }
    const std::string& needles = recipe_.data.needles;
    if (!needles.empty() && !fs::exists(needles)) problem("data.needles: no file {}", needles);
  }

  void check_source() {
    if (!fs::exists(recipe_.source + "/config.json")) {
      problem(
          "source: {} has no config.json; without it there is no estimate of memory, time and "
          "disk",
          recipe_.source);
      return;
    }
    try {
      const ModelConfig source = read_model_config(recipe_.source);
      if (recipe_.num_kept() > source.num_layers) {
        problem("swap keeps {} layers, but the source has {}", recipe_.num_kept(),
                source.num_layers);
        return;
      }
      const PlanContext context{recipe_, source, planned_hybrid(recipe_, source), num_ranks_,
                                device_.cuda};
      print_models(context);
      print_stages(context);
      check_disk(context);
    } catch (const std::runtime_error& error) {
      problem("source: {}", error.what());
    }
  }

  void print_models(const PlanContext& context) {
    const ModelConfig& source = context.source;
    fmt::print(out_, "source: {}, {} layers, width {}, {} parameters, context {}\n", source.family,
               source.num_layers, source.width,
               amount_text(static_cast<double>(num_parameters(source))), source.max_position);
    if (context.hybrid.is_hybrid()) {
      fmt::print(out_, "hybrid: {} sparse and {} lightning layers, {} parameters\n",
                 recipe_.num_kept(), source.num_layers - recipe_.num_kept(),
                 amount_text(static_cast<double>(num_parameters(context.hybrid))));
    }
    fmt::print(out_, "device: {}; {} rank{}\n", device_.name, num_ranks_,
               num_ranks_ == 1 ? "" : "s");
    fmt::print(out_, "time assumes {:.3g} TFLOP/s for each rank ({})\n\n",
               speed(context) / static_cast<double>(num_ranks_) / 1e12, reason(context));
  }

  double mfu(const PlanContext& context) const {
    return kAssumedMfu * std::min(1.0, static_cast<double>(context.source.width) / kWideModel);
  }

  // FLOP/s of all ranks together.
  double speed(const PlanContext& context) const {
    if (!device_.cuda) return device_.peak_flops;
    return mfu(context) * device_.peak_flops * static_cast<double>(num_ranks_);
  }

  std::string reason(const PlanContext& context) const {
    if (!device_.cuda) return fmt::format("{:.0f} GFLOP/s a core", kCpuCoreFlops / 1e9);
    return fmt::format("{:.0f} % of {:.0f}", 100 * mfu(context), device_.peak_flops / 1e12);
  }

  // One line of the table: ten columns.
  template <class... Cells>
  void print_row(const std::string& first, const Cells&... cells) {
    fmt::print(out_, "{:<16} {:>8} {:>8} {:>11} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9}\n", first,
               cells...);
  }

  void print_stages(const PlanContext& context) {
    print_row("stage", "steps", "tokens", "memory/rank", "weights", "gradients", "optimizer",
              "activations", "FLOPs", "time");
    double flops = 0;
    double tokens = 0;
    std::vector<std::string> advice;
    for (const auto& stage : recipe_.stages) {
      const StagePlan plan = stage->plan(context);
      flops += plan.flops;
      tokens += static_cast<double>(plan.tokens);
      print_row(stage->name, plan.steps, amount_text(static_cast<double>(plan.tokens)),
                bytes_text(plan.memory_bytes()), bytes_text(plan.weights_bytes),
                bytes_text(plan.gradient_bytes), bytes_text(plan.optimizer_bytes),
                bytes_text(plan.activation_bytes), fmt::format("{:.2g}", plan.flops),
                time_text(plan.flops / speed(context)));
      check_memory(*stage, plan);
      if (!plan.advice.empty()) advice.push_back(plan.advice);
    }
    print_row("all", "", amount_text(tokens), "", "", "", "", "", fmt::format("{:.2g}", flops),
              time_text(flops / speed(context)));
    fmt::print(out_,
               "Activations and time are estimates; evaluations inside stages, start-up and "
               "checkpoints come on top.\n\n");
    for (const std::string& line : advice) fmt::print(out_, "{}\n", line);
  }

  void check_memory(const Stage& stage, const StagePlan& plan) {
    if (device_.memory_bytes == 0) return;
    // CPU ranks of this machine share its memory.
    const double needed = plan.memory_bytes() * static_cast<double>(device_.cuda ? 1 : num_ranks_);
    if (needed <= device_.memory_bytes) return;
    problem("stage {}: needs about {} of memory{}, but there are {}", stage.name,
            bytes_text(needed), device_.cuda ? " per GPU" : " in this machine",
            bytes_text(device_.memory_bytes));
  }

  void check_disk(const PlanContext& context) {
    // A stage boundary holds the weights alone (the mixers before the swap), and all of them are
    // kept; inside a stage the optimizer's state comes with them, for the newest few.
    const double hybrid_bytes = 4.0 * static_cast<double>(num_parameters(context.hybrid));
    double boundaries = 0, largest = 0, exported = 0;
    bool aligned = false, swapped = false;
    for (const auto& stage : recipe_.stages) {
      const std::string type = stage->type();
      aligned = aligned || type == "align";
      swapped = swapped || type == "swap" || type == "train";
      if (swapped || aligned) boundaries += swapped ? hybrid_bytes : mixer_bytes(context);
      if (type == "export") exported += hybrid_bytes / 2;
      if (stage->save_every > 0) largest = std::max(largest, stage->plan(context).checkpoint_bytes);
    }
    // One more than is kept: the old one goes when the new one is whole.
    const double inside = static_cast<double>(recipe_.run.keep_checkpoints + 1) * largest;
    const double needed = boundaries + inside + exported;
    fs::path place = fs::absolute(recipe_.run.folder);
    while (!fs::exists(place) && place.has_relative_path()) place = place.parent_path();
    const double free = static_cast<double>(fs::space(place).available);
    fmt::print(out_, "disk: {} at stage boundaries, {} inside stages, {} exported; {} free at {}\n",
               bytes_text(boundaries), bytes_text(inside), bytes_text(exported), bytes_text(free),
               recipe_.run.folder);
    if (needed > free) {
      problem("run.folder: the run needs about {} of disk, but {} has {} free", bytes_text(needed),
              place.string(), bytes_text(free));
    }
  }

  Recipe& recipe_;
  const CheckDevice& device_;
  int64_t num_ranks_;
  std::ostream& out_;
  std::vector<std::string> problems_;
};

}  // namespace

CheckDevice check_device(const RunOptions& run) {
  if (run.device != "cpu" && num_gpus() > 0) {
    const at::Device gpu(at::kCUDA, 0);
    const double peak = device_peak_flops(gpu);
    return {true, device_name(gpu), device_memory_bytes(gpu), peak > 0 ? peak : kAssumedPeak};
  }
  if (run.device == "cuda") {
    return {true, "no GPU here; planned for H100s, memory not compared", 0, kAssumedPeak};
  }
  const double cores = std::max(1u, std::thread::hardware_concurrency());
  const double memory = device_memory_bytes(at::kCPU);
  return {false, fmt::format("CPU, {:.0f} cores, {}", cores, bytes_text(memory)), memory,
          cores * kCpuCoreFlops};
}

int check_recipe(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out) {
  return Check(recipe, device, num_ranks, out).run();
}

int check_recipe(Recipe& recipe, int64_t num_ranks) {
  return check_recipe(recipe, check_device(recipe.run), num_ranks, std::cout);
}

}  // namespace sala
