// Whether the loss or the gradient of a step lies far outside what the steps before it had.
#pragma once

#include <deque>
#include <nlohmann/json.hpp>
#include <string>

namespace sala {

// The band of a number is its median over the last 64 steps plus ten times their median absolute
// deviation, and at least twice that median: both have to be left, so that neither the small noise
// of a flat stretch nor a loss near 0 is a spike. A step that is one enters the band like others,
// so that a lasting change is one no more after 32 steps. The first 16 steps of a stage are none.
class SpikeWatch {
 public:
  // Of the next step, before its update, both finite. What left its band and by how much, for
  // people; empty: nothing did. The same numbers give the same answer on every rank.
  std::string add(double loss, double grad_norm);

  nlohmann::json state() const;
  void restore(const nlohmann::json& state);

 private:
  std::deque<double> losses_, norms_;  // at most 64 each, in order
};

}  // namespace sala
