// Whether a stage makes its model better or destroys it, from the losses of its steps alone.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace sala {

// The loss of one step is noisy, and its first value belongs to the model as the stage found it:
// no update had been made. So a stage is held to its beginning.
class LossWatch {
 public:
  void add(double loss);  // of the next step, finite

  // Three steps in a row lie above twice the lowest of the first five losses, plus 1: no noise of
  // batches does that, and no single spike.
  bool diverged() const;
  double began() const;  // the lowest of the first five losses; one has been added

  struct Comparison {
    double began, ended;  // means over the first and over the last steps
    // By more than three standard errors and 2 %; or, where the first steps have destroyed the
    // model already, by far above began(), which `began` is then.
    bool worse;
  };
  // nullopt with fewer than four steps.
  std::optional<Comparison> compare() const;

  nlohmann::json state() const;
  void restore(const nlohmann::json& state);

 private:
  double destroyed() const;  // a loss above this is no noise

  std::vector<double> first_, last_;  // at most kWindow each, in order
  int64_t num_ = 0;                   // losses so far
  int64_t num_above_ = 0;             // steps in a row above the limit of diverged()
};

}  // namespace sala
