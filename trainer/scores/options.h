// The score stage's keys in a recipe, and what can be said of them before anything runs.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "trainer/recipe/fields.h"
#include "trainer/stage.h"

namespace sala {

struct ScoreOptions {
  std::string method = "kl";           // kl | halo | retrieval | gates | uniform | file
  std::map<std::string, double> data;  // source: share of the rows
  int64_t documents = 64;              // rows
  int64_t row_length = 1024;           // tokens
  int64_t recall_span = 64;            // tokens at a row's end that ask for earlier ones
  int64_t steps = 128;                 // gates: updates
  int64_t step_rows = 8;               // gates: rows of one update, all ranks together
  double lr = 0.05;                    // gates
  std::string file;                    // file

  // Whether the method runs models on rows of text, with aligned mixers.
  bool measures() const { return method != "uniform" && method != "file"; }

  void describe(Fields& fields);
  void check(const Recipe& recipe, const std::string& path, Problems& problems) const;
  void check_inputs(const std::string& path, const StageInputs& inputs, Problems& problems) const;
  StagePlan plan(const PlanContext& context) const;
};

}  // namespace sala
