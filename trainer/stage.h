// A stage of the recipe: what it reads from the recipe, what it plans, one step of its work, its
// state. One runner (runner.h) owns every loop: signals, checkpoints, evaluation, metrics. A stage
// leaves the run in a new state. A new stage is one file (stages/<type>.cpp) and one line in
// trainer/stages/registry.cpp.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "trainer/recipe/fields.h"

namespace sala {

class ChoiceSet;     // data/questions/choice_set.h
class NeedleSet;     // data/needles.h
class Source;        // data/source.h
struct LayerChoice;  // trainer/recipe/layer_choice.h
struct Run;          // trainer/run.h
struct Recipe;       // trainer/recipe/recipe.h
class StateWriter;   // trainer/checkpoint/checkpoints.h
class StateReader;   // trainer/checkpoint/checkpoints.h
class TaskSet;       // data/questions/task_set.h

// Bytes that will be written into a folder, by all ranks together.
struct DiskNeed {
  std::string key;  // the recipe's, of the folder
  std::string folder;
  std::string what;  // for people: "export"
  double bytes = 0;
};

// What a stage will need, before anything is allocated; per rank.
// How the rows of a step fall to the ranks; the ranks of a split sequence count as one.
struct RowShares {
  int64_t rows = 0;  // of a step; 0 = the stage has no steps
  int64_t row_length = 0;
  int64_t ranks = 1;
  int64_t most() const { return (rows + ranks - 1) / ranks; }  // of one rank
  // By how much a step takes longer than if all had as many.
  double slowdown() const {
    return rows == 0 ? 1 : static_cast<double>(most() * ranks) / static_cast<double>(rows);
  }
};

struct StagePlan {
  double weights_bytes = 0, gradient_bytes = 0, optimizer_bytes = 0, activation_bytes = 0;
  double batch_bytes = 0;  // tokens of the steps in flight
  double flops = 0;        // of the whole stage, all ranks together
  double fp32_flops = 0;   // of these, in fp32 whatever the compute type
  // That a rank receives in one step from ranks of its node, and from others.
  double node_bytes = 0, network_bytes = 0;
  double checkpoint_bytes = 0;   // one checkpoint in this stage, all ranks together
  std::vector<DiskNeed> writes;  // beside checkpoints
  int64_t tokens = 0, steps = 0;
  RowShares shares;
  std::string advice;  // a line for people; empty = none
  // All but activations, which are an estimate.
  double exact_bytes() const {
    return weights_bytes + gradient_bytes + optimizer_bytes + batch_bytes;
  }
  double memory_bytes() const { return exact_bytes() + activation_bytes; }
};

// Facts that plans and checks use; filled from the source folder's config.json (header only).
struct PlanContext {
  const Recipe& recipe;
  ModelConfig source;
  ModelConfig hybrid;  // with as many sparse layers as the recipe's swap keeps
  int64_t num_ranks = 1;
  bool cuda = false;
  int64_t longest_choice = 0;               // tokens of a question with a choice (data.choices)
  std::map<int64_t, int64_t> task_lengths;  // of data.tasks; length in tokens: its prompts
};

// What stands behind a recipe, as far as it could be read (trainer/checks/preflight.h).
struct StageInputs {
  const Recipe& recipe;
  const PlanContext* context;                       // null: no source model
  const std::map<std::string, Source>& sources;     // by name
  const NeedleSet* needles;                         // null: none
  const std::map<std::string, ChoiceSet>& choices;  // by name
  const TaskSet* tasks;                             // null: none
  bool writes;  // its folders are to be tried out: none of them is there yet
};

class Stage {
 public:
  virtual ~Stage() = default;
  virtual std::string type() const = 0;  // "align", the recipe's key
  virtual void describe(Fields& fields) = 0;
  // Cross-field arithmetic; `path` is the stage's own path ("stages[2].distill"). Reads no files.
  virtual void check(const Recipe& recipe, const std::string& path, Problems& problems) const = 0;
  // What the stage needs from model, data and folders and would find out only when it runs. Reads
  // no tokens but those it names. Called when check() had nothing to say, on the first rank alone;
  // what the stage learns it may keep for plan().
  virtual void check_inputs(const StageInputs&, Problems&) {}
  virtual bool needs_full_source() const { return false; }  // a hybrid as source will not do
  virtual bool needs_mixers() const { return false; }       // of an align stage before
  virtual bool needs_scores() const { return false; }       // of a score stage before
  virtual StagePlan plan(const PlanContext& context) const = 0;
  virtual int64_t longest_row() const { return 0; }  // tokens the source model sees at once
  virtual const LayerChoice* layer_choice() const { return nullptr; }  // swap: of the hybrid

  virtual void begin(Run&) {}          // allocate; before load()
  virtual bool advance(Run& run) = 0;  // one step or work item; false = nothing left
  virtual void end(Run&) {}            // hand the run on in its new state
  virtual void save(StateWriter& out) const = 0;
  virtual void load(StateReader& in) = 0;
  virtual bool trains() const { return false; }  // whether its steps are training steps
  virtual int64_t context() const { return 1; }  // ranks that share each of its sequences
  // Whether it measures the model by the options of the recipe's first evaluate stage.
  virtual bool evaluates() const { return evaluate_every > 0; }
  virtual int64_t step() const = 0;  // steps done
  virtual int64_t num_steps() const = 0;
  virtual bool changes_model() const { return true; }
  // Of a run that had ended before: whether its results are still there. `model_is_final`: no later
  // stage changed the model.
  virtual void look_after_end(Run&, bool /*model_is_final*/) {}

  std::string name;            // unique in the recipe; the type unless the recipe names it
  std::string path;            // in the recipe: "stages[2].distill"
  int64_t save_every = 0;      // steps between checkpoints inside the stage; 0 = only at its end
  int64_t evaluate_every = 0;  // steps between evaluations inside the stage; 0 = none
};

// The registry: trainer/stages/registry.cpp.
std::vector<std::string> stage_types();
std::unique_ptr<Stage> make_stage(const std::string& type);  // nullptr for an unknown type

}  // namespace sala
