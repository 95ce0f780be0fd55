// Which way an op goes on a GPU where there are several: the rules of this process, and who is
// told. An op that has kernels is composed of LibTorch calls where they do not take a call: the
// same result, many times slower. That is told once for each op and reason, or refused.
#pragma once

#include <functional>
#include <string>

namespace sala {

struct PathRules {
  bool strict = false;        // a composition on a GPU is an error
  bool deterministic = true;  // no way whose result may differ from call to call
  // Takes a line for people, of any thread; `slow`: of a composition. Where it is empty slow ones
  // become LibTorch warnings.
  std::function<void(const std::string& line, bool slow)> tell = {};
};

// Puts rules in force and forgets what was told; returns those before. Not while an op runs.
PathRules set_path_rules(PathRules rules);
bool deterministic_paths();

// Whether the kernels of `op` run for a call on a GPU. `lacking`: what they need and what came
// instead, "head size 64 or 128, got 80"; empty: nothing is missing. Where something is, the
// composition runs instead, which is told; c10::Error under strict rules.
bool kernels_run(const char* op, const std::string& lacking);

// Tells once that `op` goes `way`.
void tell_way(const char* op, const std::string& way);

}  // namespace sala
