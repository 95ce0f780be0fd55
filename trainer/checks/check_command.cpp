// --check: the printed plan of a recipe.
#include "trainer/checks/check_command.h"

#include <algorithm>
#include <iostream>
#include <optional>
#include <thread>

#include <fmt/format.h>
#include <fmt/ostream.h>

#include "trainer/checks/target_folder.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/ranks/device_info.h"
#include "trainer/recipe/amount_text.h"

namespace sala {

namespace {

constexpr double kCpuCoreFlops = 60e9;   // fp32 matrix products, one core of a current server
constexpr double kAssumedPeak = 989e12;  // H100 SXM, dense bf16
constexpr double kAssumedMfu = 0.4;      // of models at least this wide; narrower ones reach less,
constexpr double kWideModel = 4096;      // about in proportion, because launches then take the time

class Check {
 public:
  Check(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out)
      : recipe_(recipe), device_(device), num_ranks_(num_ranks), out_(out) {}

  int run() {
    const RecipeProblems& problems = recipe_.problems;
    if (problems.empty()) {
      fmt::print(out_, "# {}, resolved\n{}\n", recipe_.path, resolved_yaml(recipe_));
    }
    std::vector<std::string> warnings;
    const PreflightOptions options{device_, num_ranks_, num_ranks_};
    const std::optional<PlanContext> context = preflight(recipe_, options, warnings);
    if (context && problems.clean("model")) {
      print_models(*context);
      print_stages(*context);
      print_disk(*context);
    } else if (!context) {
      fmt::print(out_, "no estimate of memory, time and disk without a source model\n");
    }
    if (recipe_.run.device == "cuda" && !device_.here) {
      fmt::print(out_,
                 "\nNOTE: device: cuda, but {}: the recipe is planned for GPUs elsewhere, and "
                 "does not start here.\n\n",
                 num_gpus() < 0 ? "this program is built without CUDA" : "this machine has no GPU");
    }
    for (const std::string& line : warnings) fmt::print(out_, "warning: {}\n", line);
    for (const std::string& line : problems.lines()) fmt::print(out_, "problem: {}\n", line);
    if (problems.empty()) fmt::print(out_, "ok: this recipe can run\n");
    return problems.empty() ? 0 : 2;
  }

 private:
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
      if (!recipe_.problems.clean(stage->path)) continue;
      const StagePlan plan = stage->plan(context);
      flops += plan.flops;
      tokens += static_cast<double>(plan.tokens);
      print_row(stage->name, plan.steps, amount_text(static_cast<double>(plan.tokens)),
                bytes_text(plan.memory_bytes()), bytes_text(plan.weights_bytes),
                bytes_text(plan.gradient_bytes), bytes_text(plan.optimizer_bytes),
                bytes_text(plan.activation_bytes + plan.batch_bytes),
                fmt::format("{:.2g}", plan.flops), time_text(plan.flops / speed(context)));
      if (!plan.advice.empty()) advice.push_back(plan.advice);
    }
    print_row("all", "", amount_text(tokens), "", "", "", "", "", fmt::format("{:.2g}", flops),
              time_text(flops / speed(context)));
    fmt::print(out_,
               "Activations and time are estimates; evaluations inside stages, start-up and "
               "checkpoints come on top.\n\n");
    for (const std::string& line : advice) fmt::print(out_, "{}\n", line);
  }

  void print_disk(const PlanContext& context) {
    const DiskPlan disk = plan_disk(context);
    fmt::print(out_, "disk: {} at stage boundaries, {} inside stages, {} exported; {} free at {}\n",
               bytes_text(disk.boundaries), bytes_text(disk.inside), bytes_text(disk.exported),
               bytes_text(free_bytes(recipe_.run.folder)), recipe_.run.folder);
  }

  Recipe& recipe_;
  const CheckDevice& device_;
  int64_t num_ranks_;
  std::ostream& out_;
};

}  // namespace

CheckDevice check_device(at::Device device) {
  const double memory = device_memory_bytes(device);
  if (device.is_cuda()) {
    const double peak = device_peak_flops(device);
    return {true, device_name(device), memory, peak > 0 ? peak : kAssumedPeak};
  }
  const double cores = std::max(1u, std::thread::hardware_concurrency());
  return {false, fmt::format("CPU, {:.0f} cores, {}", cores, bytes_text(memory)), memory,
          cores * kCpuCoreFlops};
}

CheckDevice check_device(const RunOptions& run) {
  if (run.device != "cpu" && num_gpus() > 0) return check_device(at::Device(at::kCUDA, 0));
  if (run.device != "cuda") return check_device(at::Device(at::kCPU));
  return {true, "no GPU here; planned for H100s, memory not compared", 0, kAssumedPeak, false};
}

int check_recipe(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out) {
  return Check(recipe, device, num_ranks, out).run();
}

int check_recipe(Recipe& recipe, int64_t num_ranks) {
  return check_recipe(recipe, check_device(recipe.run), num_ranks, std::cout);
}

}  // namespace sala
