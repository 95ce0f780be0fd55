// What metrics.jsonl tells of a run, put together line by line in bounded memory: curves of each
// stage, evaluations, scores, checkpoints, times.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/charts/numbers.h"
#include "trainer/charts/series.h"

namespace sala {

// object[key] as a finite number; nothing where it is absent, null or something else, or where
// `object` is no object.
Maybe number_at(const nlohmann::json& object, const std::string& key);
int64_t count_at(const nlohmann::json& object, const std::string& key);     // -1 likewise
std::string text_at(const nlohmann::json& object, const std::string& key);  // "" likewise
// object[key], or `otherwise` an empty value of that kind where it has another one.
const nlohmann::json& object_at(const nlohmann::json& object, std::string_view key);
const nlohmann::json& array_at(const nlohmann::json& object, std::string_view key);

struct StageRecord {
  std::string name;
  Series loss, kl, ce, lr, grad_norm, tokens_per_second, mfu;  // by tokens of the whole run
  std::map<std::string, double> spent;                         // seconds by phase
  double memory_bytes = 0, skew_seconds = 0, step_seconds = 0, wall_seconds = 0;
  int64_t num_steps = 0, num_skipped = 0, num_passed_over = 0;
  double begin_tokens = 0, end_tokens = 0;
  std::vector<double> skipped_at;   // tokens; the first kMostMarks of them
  std::vector<double> spikes_at;    // likewise
  std::vector<std::string> spikes;  // what was said of these
  int64_t num_spikes = 0;
  std::vector<double> layer_losses;  // of align's last step
  Maybe trainable, frozen;           // parameters
  int64_t last_step = 0;
};

// A held-out source as it went over the run.
struct HeldOut {
  Series loss, kl;  // of the student, by tokens of the whole run
};

struct SavingRecord {
  int64_t count = 0;
  Series stall_seconds, write_seconds;
  double most_stall = 0, most_write = 0;
};

struct Record {
  static constexpr size_t kMostMarks = 100;

  void add(nlohmann::json&& line);  // any JSON object; what is not known is passed over

  nlohmann::json start = nlohmann::json::object();  // the newest start event
  std::vector<StageRecord> stages;                  // in the order in which they began
  std::vector<nlohmann::json> evaluations;          // between stages, teacher's too
  std::map<std::string, HeldOut> held_out;          // by source; also those inside stages
  std::vector<nlohmann::json> scores, swaps, exports;
  nlohmann::json origin;              // tensors and where they came from
  std::vector<std::string> warnings;  // verdicts and divergences
  SavingRecord saving;
  std::string forked_from;
  std::string error;       // that ended it
  double tokens = 0;       // seen in training so far
  double run_seconds = 0;  // in which it ran, its starts added up
  Maybe first_time, last_time;
  int64_t num_starts = 0, num_lines = 0;
  bool ended = false, stopped = false;  // said by the last lines
  std::string current_stage;

  const StageRecord* stage(const std::string& name) const;

 private:
  StageRecord& stage_at(const std::string& name);
  void count_time(const nlohmann::json& line, const std::string& event);
  void add_step(const nlohmann::json& line, double tokens_before);
  void add_evaluation(nlohmann::json&& line);
  void add_checkpoint(const nlohmann::json& line);
  void add_fork(nlohmann::json&& line);
  void add_spike(const nlohmann::json& line);
  bool warmed_up_ = false;  // a step came since the start or the stage's begin
};

}  // namespace sala
