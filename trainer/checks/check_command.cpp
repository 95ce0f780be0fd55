// --check: the printed plan of a recipe.
#include "trainer/checks/check_command.h"

#include <algorithm>
#include <iostream>
#include <optional>
#include <span>
#include <thread>

#include <fmt/format.h>
#include <fmt/ostream.h>
#include <fmt/ranges.h>

#include "trainer/checkpoint/folder.h"
#include "trainer/checks/disk_room.h"
#include "trainer/journal/recipe_record.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/planning/speed.h"
#include "trainer/ranks/device_info.h"
#include "trainer/recipe/amount_text.h"

namespace sala {

namespace {

constexpr double kCpuCoreFlops = 60e9;   // fp32 matrix products, one core of a current server
constexpr double kAssumedPeak = 989e12;  // H100 SXM, dense bf16

class Check {
 public:
  Check(Recipe& recipe, const CheckDevice& device, int64_t num_ranks, std::ostream& out)
      : recipe_(recipe), device_(device), num_ranks_(num_ranks), out_(out) {}

  int run() {
    const RecipeProblems& problems = recipe_.problems;
    compare_with_run();
    if (problems.empty()) {
      fmt::print(out_, "# {}, resolved\n{}\n", recipe_.path, resolved_yaml(recipe_));
    }
    std::vector<std::string> warnings;
    const PreflightOptions options{device_, num_ranks_, num_ranks_, recipe_.begin.stage};
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
  // A start goes on with the newest checkpoint of its run folder, and refuses one of another
  // recipe.
  void compare_with_run() {
    RecipeProblems& problems = recipe_.problems;
    if (!problems.empty() || recipe_.begin.stage > 0) return;
    const auto newest = newest_manifest(recipe_.run.folder + "/checkpoints");
    if (!newest) return;
    const CheckpointId& id = newest->id;
    const auto changes =
        recipe_changes(newest->recipe, recipe_record(recipe_), id.stage_index + (id.step > 0));
    const std::string found = fmt::format("{} holds a checkpoint of stage {}, step {}",
                                          recipe_.run.folder, id.stage, id.step);
    if (changes.empty()) {
      fmt::print(out_, "# {}: a start continues there\n", found);
      return;
    }
    problems.add("run.folder",
                 fmt::format("{}, which was made with other values: {}; restore them, or choose "
                             "another run.folder (--from takes over a checkpoint's weights)",
                             found, changes_text(changes)));
  }

  // Those that will run.
  std::span<const std::unique_ptr<Stage>> stages() const {
    return std::span(recipe_.stages).subspan(static_cast<size_t>(recipe_.begin.stage));
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
    const Beginning& begin = recipe_.begin;
    if (!begin.checkpoint.empty() && !stages().empty()) {
      fmt::print(out_, "begins with {}: stage {}, step {}\n", begin.checkpoint,
                 stages().front()->name, begin.step);
    }
    fmt::print(out_, "device: {}; {} rank{}\n", device_.name, num_ranks_,
               num_ranks_ == 1 ? "" : "s");
    if (!device_.cuda) {
      fmt::print(out_, "time assumes {:.0f} GFLOP/s a core\n\n", kCpuCoreFlops / 1e9);
      return;
    }
    const auto percent = [&](const char* type) { return 100 * measured_share(type, source.width); };
    fmt::print(out_,
               "time is by what models of this width reached on H200s: align {:.0f} %, distill "
               "{:.0f} %, train {:.0f} % of the peak of {:.0f} TFLOP/s; {:.0f} % are assumed where "
               "selection is taught, in fp32\n\n",
               percent("align"), percent("distill"), percent("train"), device_.peak_flops / 1e12,
               100 * kFp32Share);
  }

  // One line of the table: eleven columns.
  template <class... Cells>
  void print_row(const std::string& first, const Cells&... cells) {
    fmt::print(out_, "{:<16} {:>8} {:>8} {:>11} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9} {:>9}\n",
               first, cells...);
  }

  void print_stages(const PlanContext& context) {
    print_row("stage", "steps", "tokens", "memory/rank", "weights", "gradients", "optimizer",
              "activations", "net/step", "FLOPs", "time");
    double flops = 0, seconds = 0;
    std::vector<std::string> bound;  // by what ranks send each other
    double tokens = 0;
    std::vector<std::string> advice;
    for (const auto& stage : stages()) {
      if (!recipe_.problems.clean(stage->path)) continue;
      const StagePlan plan = stage->plan(context);
      const double of_stage = stage_seconds(context, stage->type(), plan, device_.peak_flops);
      if (network_bound(context, stage->type(), plan, device_.peak_flops)) {
        bound.push_back(stage->name);
      }
      flops += plan.flops;
      seconds += of_stage;
      tokens += static_cast<double>(plan.tokens);
      print_row(stage->name, plan.steps, amount_text(static_cast<double>(plan.tokens)),
                bytes_text(plan.memory_bytes()), bytes_text(plan.weights_bytes),
                bytes_text(plan.gradient_bytes), bytes_text(plan.optimizer_bytes),
                bytes_text(plan.activation_bytes + plan.batch_bytes),
                num_ranks_ > 1 ? bytes_text(plan.node_bytes + plan.network_bytes) : "",
                fmt::format("{:.2g}", plan.flops), time_text(of_stage));
      if (!plan.advice.empty()) advice.push_back(plan.advice);
      const std::string uneven =
          uneven_rows_advice(context, stage->type(), stage->name, plan, device_.peak_flops);
      if (!uneven.empty()) advice.push_back(uneven);
    }
    print_row("all", "", amount_text(tokens), "", "", "", "", "", "", fmt::format("{:.2g}", flops),
              time_text(seconds));
    if (num_ranks_ > 1 && device_.cuda) print_network(bound);
    fmt::print(out_,
               "Activations and time are estimates; evaluations inside stages, start-up and "
               "checkpoints come on top.\n\n");
    for (const std::string& line : advice) fmt::print(out_, "{}\n", line);
  }

  void print_network(const std::vector<std::string>& bound) {
    fmt::print(out_,
               "net/step: what a rank receives in a step, beside the computing; assumed: {} GPUs a "
               "node, {:.0f} GB/s for each inside, {:.0f} between nodes. ",
               kNodeRanks, kNodeRate / 1e9, kNetworkRate / 1e9);
    if (bound.empty()) {
      fmt::print(out_, "Computing takes longer in every stage.\n");
    } else {
      const bool in_groups = recipe_.run.shard_ranks > 0 && recipe_.run.shard_ranks <= kNodeRanks;
      fmt::print(
          out_,
          "It takes longer than computing, and is the time above, in {}: larger batch_tokens "
          "and micro_tokens{} would help.\n",
          fmt::join(bound, ", "),
          in_groups || num_ranks_ <= kNodeRanks ? "" : ", or run.shard_ranks: 8,");
    }
  }

  void print_disk(const PlanContext& context) {
    std::vector<DiskNeed> needs = plan_checkpoints(context);
    for (DiskNeed& need : plan_stage_writes(context, recipe_.begin.stage)) {
      needs.push_back(std::move(need));
    }
    for (const DiskRoom& room : disk_rooms(needs)) {
      fmt::print(out_, "disk: {} of {} free: {}\n", bytes_text(room.needed_bytes()),
                 bytes_text(room.free_bytes), room.sum_text());
    }
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
