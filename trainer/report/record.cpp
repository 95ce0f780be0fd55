// Each event to its place.
#include "trainer/report/record.h"

#include <algorithm>
#include <cmath>

namespace sala {

using nlohmann::json;

Maybe number_at(const json& object, const std::string& key) {
  if (!object.is_object()) return {};
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return {};
  const double value = found->get<double>();
  return std::isfinite(value) ? Maybe(value) : Maybe();
}

int64_t count_at(const json& object, const std::string& key) {
  constexpr double kMost = 1e15;  // whole numbers below it are exact
  return static_cast<int64_t>(std::clamp(number_at(object, key).value_or(-1), -kMost, kMost));
}

std::string text_at(const json& object, const std::string& key) {
  if (!object.is_object()) return "";
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

namespace {

const json& member(const json& object, std::string_view key, json::value_t type) {
  static const json kObject = json::object(), kArray = json::array();
  if (object.is_object()) {
    const auto found = object.find(key);
    if (found != object.end() && found->type() == type) return *found;
  }
  return type == json::value_t::array ? kArray : kObject;
}

}  // namespace

const json& object_at(const json& object, std::string_view key) {
  return member(object, key, json::value_t::object);
}

const json& array_at(const json& object, std::string_view key) {
  return member(object, key, json::value_t::array);
}

const StageRecord* Record::stage(const std::string& name) const {
  const auto found = std::find_if(stages.begin(), stages.end(),
                                  [&](const StageRecord& s) { return s.name == name; });
  return found == stages.end() ? nullptr : &*found;
}

StageRecord& Record::stage_at(const std::string& name) {
  for (StageRecord& stage : stages) {
    if (stage.name == name) return stage;
  }
  stages.emplace_back().name = name;
  warmed_up_ = false;
  return stages.back();
}

void Record::add(json&& line) {
  ++num_lines;
  const std::string event = text_at(line, "event");
  ended = stopped = false;
  count_time(line, event);
  const double before = tokens;
  if (const Maybe seen = number_at(line, "tokens")) tokens = std::max(tokens, *seen);
  if (event == "step") {
    add_step(line, before);
  } else if (event == "step_without_targets") {
    ++stage_at(text_at(line, "stage")).num_passed_over;
  } else if (event == "evaluate") {
    add_evaluation(std::move(line));
  } else if (event == "start") {
    ++num_starts;
    warmed_up_ = false;
    error.clear();
    start = std::move(line);
  } else if (event == "checkpoint") {
    add_checkpoint(line);
  } else if (event == "verdict" || event == "divergence") {
    warnings.push_back(text_at(line, "text"));
  } else if (event == "spike") {
    add_spike(line);
  } else if (event == "scores") {
    scores.push_back(std::move(line));
  } else if (event == "swap") {
    swaps.push_back(std::move(line));
  } else if (event == "origin") {
    origin = std::move(line);
  } else if (event == "export") {
    exports.push_back(std::move(line));
  } else if (event == "fork") {
    add_fork(std::move(line));
  } else if (event == "stop") {
    stopped = true;
  } else if (event == "error") {
    error = text_at(line, "text");
  } else if (event == "end") {
    ended = true;
  }
}

// A line's time since the one before belongs to the stage that is under way; between the last line
// of one start and the next start nothing ran.
void Record::count_time(const json& line, const std::string& event) {
  const std::string named = event == "checkpoint" || event == "fork" ? "" : text_at(line, "stage");
  if (!named.empty()) current_stage = named;
  const Maybe time = number_at(line, "time");
  if (!time) return;
  if (!first_time) first_time = time;
  if (last_time && event != "start" && *time > *last_time) {
    run_seconds += *time - *last_time;
    if (!current_stage.empty()) stage_at(current_stage).wall_seconds += *time - *last_time;
  }
  last_time = time;
}

void Record::add_step(const json& line, double tokens_before) {
  StageRecord& stage = stage_at(text_at(line, "stage"));
  const double at = number_at(line, "tokens").value_or(tokens);
  if (stage.num_steps++ == 0) stage.begin_tokens = tokens_before;
  stage.end_tokens = at;
  stage.last_step = std::max<int64_t>(0, count_at(line, "step"));
  const auto finite = line.find("finite");
  const bool skipped = finite != line.end() && finite->is_boolean() && !finite->get<bool>();
  if (skipped) {
    ++stage.num_skipped;
    if (stage.skipped_at.size() < kMostMarks) stage.skipped_at.push_back(at);
  }
  const auto curve = [&](Series& series, const char* key) {
    if (const Maybe value = number_at(line, key)) series.add(at, *value);
  };
  if (!skipped) curve(stage.loss, "loss"), curve(stage.kl, "kl"), curve(stage.ce, "ce");
  if (!skipped) curve(stage.grad_norm, "grad_norm");
  curve(stage.lr, "lr");
  curve(stage.mfu, "mfu");
  curve(stage.tokens_per_second, "tokens_per_second");
  const json& norms = array_at(line, "layer_grad_norms");
  double most = -1;
  for (const json& norm : norms) most = std::max(most, norm.is_number() ? norm.get<double>() : -1);
  if (most >= 0 && !skipped) stage.grad_norm.add(at, most);
  if (const json& losses = array_at(line, "layer_losses"); !losses.empty()) {
    stage.layer_losses.clear();
    for (const json& x : losses) {
      stage.layer_losses.push_back(x.is_number() ? x.get<double>() : std::nan(""));
    }
  }
  const json& parameters = object_at(line, "parameters");
  if (const Maybe trainable = number_at(parameters, "trainable")) {
    stage.trainable = trainable;
    stage.frozen = number_at(parameters, "frozen");
  }
  stage.memory_bytes = std::max(stage.memory_bytes, number_at(line, "memory_bytes").value_or(0));
  stage.step_seconds += number_at(line, "seconds").value_or(0);
  if (warmed_up_) {  // the first step also opens files
    stage.skew_seconds += number_at(line, "skew_seconds").value_or(0);
    for (const auto& [phase, seconds] : object_at(line, "spent").items()) {
      if (seconds.is_number()) stage.spent[phase] += seconds.get<double>();
    }
  }
  warmed_up_ = true;
}

void Record::add_evaluation(json&& line) {
  const double at = number_at(line, "tokens_seen").value_or(tokens);
  if (text_at(line, "model") != "teacher") {
    for (const auto& [name, measured] : object_at(line, "sources").items()) {
      HeldOut& source = held_out[name];
      if (const Maybe loss = number_at(measured, "loss")) source.loss.add(at, *loss);
      if (const Maybe kl = number_at(measured, "kl")) source.kl.add(at, *kl);
    }
  }
  if (!line.contains("step")) evaluations.push_back(std::move(line));
}

void Record::add_checkpoint(const json& line) {
  const Maybe stall = number_at(line, "stall_seconds"), write = number_at(line, "write_seconds");
  if (!stall && !write) return;  // the one that a start continued
  const auto at = static_cast<double>(saving.count++);
  if (stall) saving.stall_seconds.add(at, *stall);
  if (write) saving.write_seconds.add(at, *write);
  saving.most_stall = std::max(saving.most_stall, stall.value_or(0));
  saving.most_write = std::max(saving.most_write, write.value_or(0));
}

void Record::add_spike(const json& line) {
  StageRecord& stage = stage_at(text_at(line, "stage"));
  if (stage.num_spikes++ >= static_cast<int64_t>(kMostMarks)) return;
  stage.spikes_at.push_back(number_at(line, "tokens").value_or(tokens));
  stage.spikes.push_back(text_at(line, "text"));
}

// What the run that this one began from had measured.
void Record::add_fork(json&& line) {
  forked_from = text_at(line, "from");
  for (const json& verdict : array_at(line, "verdicts")) {
    if (verdict.is_string()) warnings.push_back(verdict.get<std::string>());
  }
  for (const json& evaluation : array_at(line, "evaluations")) {
    if (evaluation.is_object()) add_evaluation(json(evaluation));
  }
  if (const json& kept = object_at(line, "scores"); !kept.empty()) scores.push_back(kept);
  if (const json& kept = array_at(line, "kept"); !kept.empty()) swaps.push_back({{"kept", kept}});
}

}  // namespace sala
