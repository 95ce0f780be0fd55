// A toy recipe run as users run it: a real source folder, real token stores, sala-train alone or
// under mpirun.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sala::test {

struct ToyOptions {
  std::string stages;      // YAML list; empty = every type of stage once
  int64_t save_every = 0;  // steps, in every training stage
};

// A folder of its own with source model, token stores and recipe; removed at the end of the test.
class ToyRun {
 public:
  explicit ToyRun(const ToyOptions& options = {});
  ~ToyRun();
  ToyRun(const ToyRun&) = delete;
  ToyRun& operator=(const ToyRun&) = delete;

  const std::string& folder() const { return folder_; }
  std::string run_folder(const std::string& name) const { return folder_ + "/" + name; }
  std::string export_folder(const std::string& name) const { return run_folder(name) + "_export"; }
  std::string recipe() const { return folder_ + "/recipe.yaml"; }

  // Runs the recipe to its end in run folder `name`. Returns the exit code; output goes to
  // `name`.log. One rank is started directly, several under mpirun.
  int run(const std::string& name, int ranks, const std::string& arguments = "") const;
  // The same in the background, in a process group of its own.
  pid_t start(const std::string& name, int ranks, const std::string& arguments = "") const;
  std::string log(const std::string& name) const;
  pid_t first_rank(const std::string& name) const;  // from the run folder's lock

  // Lines of metrics.jsonl with this event; without what differs from run to run (times, memory).
  std::vector<nlohmann::json> events(const std::string& name, const std::string& event) const;
  // How far the run had got when the checkpoint of step `step` of `stage` was complete: the last
  // step of that stage before the checkpoint's line; -1 if there is no such line.
  int64_t step_at_commit(const std::string& name, const std::string& stage, int64_t step) const;
  // Waits until stage `stage` has written step `step`; false if the run ended before.
  bool wait_for_step(const std::string& name, pid_t process, const std::string& stage,
                     int64_t step) const;
  // Finished items of the score stage, and waiting for so many.
  int64_t num_scores(const std::string& name) const;
  bool wait_for_scores(const std::string& name, pid_t process, int64_t count) const;
  // The checkpoint at the start of stage `stage`.
  std::string checkpoint_of(const std::string& name, const std::string& stage) const;
  // The JSON of the run's last manifest: tensors with their hashes.
  nlohmann::json last_manifest(const std::string& name) const;

 private:
  std::string folder_;
  bool exports_;
};

}  // namespace sala::test
