// What an evaluation consists of, and who is told.
#include "trainer/evaluation/evaluate.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/generate.h"
#include "trainer/evaluation/choices.h"
#include "trainer/evaluation/held_out.h"
#include "trainer/evaluation/needles.h"
#include "trainer/evaluation/summary.h"
#include "trainer/evaluation/tasks.h"
#include "trainer/ranks/device_info.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

// Two evaluations of one model with equal identities give equal numbers.
nlohmann::json identity(const EvaluateOptions& o) {
  return {{"sources", o.sources},
          {"tokens", o.tokens},
          {"row_length", o.row_length},
          {"needle_lengths", o.needle_lengths},
          {"needle_depths", o.needle_depths},
          {"needles_per_cell", o.needles_per_cell},
          {"needle_source", o.needle_source},
          {"choices", o.choices},
          {"choices_items", o.choices_items},
          {"tasks", o.tasks},
          {"task_lengths", o.task_lengths},
          {"task_items", o.task_items}};
}

}  // namespace

int64_t generation_cache_bytes(at::Device device) {
  if (device.is_cpu()) return GenerateOptions().cache_bytes;
  const double unused = device_memory_bytes(device) - peak_memory_bytes(device);
  return std::clamp<int64_t>(static_cast<int64_t>(unused / 2), 0, kMostCacheBytes);
}

nlohmann::json evaluate_model(Run& run, const EvaluateOptions& options, const std::string& label,
                              Network& network, bool is_teacher) {
  nlohmann::json result = {{"label", label},
                           {"model", is_teacher ? "teacher" : "student"},
                           {"options", identity(options)}};
  Network* teacher = !is_teacher && options.kl ? &run.teacher() : nullptr;
  for (const std::string& name : options.sources) {
    result["sources"][name] = evaluate_source(run, options, label, name, network, teacher);
  }
  if (!options.choices.empty()) evaluate_choices(run, options, label, network, result);
  if (!options.needle_lengths.empty()) evaluate_needles(run, options, label, network, result);
  if (!options.tasks.empty()) evaluate_tasks(run, options, label, network, result);
  return result;
}

void tell_evaluation(Run& run, nlohmann::json result, const nlohmann::json& place) {
  auto label = result.at("label").get<std::string>();
  if (place.contains("step")) label += fmt::format(" step {}", place.at("step").get<int64_t>());
  for (const std::string& line : evaluation_lines(result)) run.metrics.note(label + ": " + line);
  result.erase("tokens_seen");
  result.update(place);
  result.update({{"event", "evaluate"}, {"tokens", run.tokens_seen}});
  run.metrics.event(result);
}

void evaluate_and_record(Run& run, const EvaluateOptions& options, const std::string& label) {
  auto record = [&](const std::string& as, Network& network, bool is_teacher) {
    nlohmann::json result = evaluate_model(run, options, as, network, is_teacher);
    result["tokens_seen"] = run.tokens_seen;
    run.evaluations.push_back(result);
    tell_evaluation(run, result, {{"stage", label}});
  };
  bool teacher_done = false;
  for (const auto& e : run.evaluations) {
    teacher_done |= e.at("model") == "teacher" && e.at("options") == identity(options);
  }
  if (!teacher_done) record("teacher", run.teacher(), true);
  if (run.student) record(label, *run.student, false);
}

void read_together(Run& run, const std::string& what, const std::function<void()>& work) {
  try {
    run.world.together(what, work);
  } catch (const SharedError& error) {
    if (!run.world.any(stop_requested())) throw;
    run.metrics.note(fmt::format("warning: {}; asked to stop meanwhile", error.what()));
    throw Stopped{};
  }
}

void evaluate_with_recipe(Run& run, const std::string& label) {
  if (const EvaluateOptions* options = evaluate_options(run.recipe)) {
    evaluate_and_record(run, *options, label);
  }
}

}  // namespace sala
