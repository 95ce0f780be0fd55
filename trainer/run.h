// What stages share and hand on: the teacher, the mixers in alignment, the scores, the hybrid, the
// data cursor. Everything here but the teacher is in every checkpoint.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/stores/store_catalog.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/journal/metrics.h"
#include "trainer/network.h"
#include "trainer/recipe/recipe.h"
#include "trainer/world.h"

namespace sala {

struct Run {
  Run(Recipe& recipe, World& world, Metrics& metrics);

  Recipe& recipe;
  World& world;
  Metrics& metrics;
  std::string folder;
  ModelConfig source;           // of the folder `recipe.source`
  TokenizerIdentity tokenizer;  // token stores made with another tokenizer are refused
  std::shared_ptr<const StoreCatalog> stores = std::make_shared<StoreCatalog>();  // verified ones

  // One lightning mixer per layer, part l, from align until swap; null otherwise.
  std::unique_ptr<Parameters> aligned;
  bool aligned_is_final = false;  // the align stage that made them has ended
  nlohmann::json scores;  // of the score stage: [{"layer", "score", "plain", "recall", …}]
  std::unique_ptr<Network> student;                      // null before swap
  nlohmann::json data_state;                             // the mixture's cursors; null at the start
  nlohmann::json evaluations = nlohmann::json::array();  // one object per finished evaluation
  nlohmann::json inputs;              // what it reads, by content (trainer/checks/input_identity.h)
  std::vector<std::string> verdicts;  // stages that ended worse than they began, a line each
  int64_t tokens_seen = 0;            // by training stages

  // The frozen source model in the compute dtype; read from its folder at first use.
  Network& teacher();
  void drop_teacher() { teacher_.reset(); }
  // Makes a model of this configuration the student, zero-filled.
  void make_student(const ModelConfig& config);
  // The mixers in alignment, zero-filled; `config` has every layer lightning.
  void make_aligned(const ModelConfig& config);
  // Parts of the source model that are `wanted`, one after the other, in the files' own type on the
  // CPU, to `take`, which does not communicate. Files are verified, values are finite, and all
  // ranks have read the same, or all throw.
  void read_source(const std::vector<LayoutPtr>& layouts,
                   const std::function<bool(size_t part)>& wanted,
                   const std::function<void(size_t part, Weights& weights)>& take);
  // How parameters are held, by the recipe.
  Parameters::Options holding(bool trains) const;
  ParameterComms parameter_comms() const;

  // `boundary`: between two stages. The model goes where unchanged tensors are written once, so
  // that a stage that only measures adds nothing to the disk.
  void save(StateWriter& out, bool boundary) const;
  // `load` fills this rank's shares and may throw on one rank alone; publish_loaded then brings the
  // compute copies, where all ranks have loaded.
  void load(StateReader& in);
  void publish_loaded();
  // A SharedError where groups that hold copies of the model (run.shard_ranks) differ in a bit.
  void require_equal_copies();

 private:
  std::unique_ptr<Network> teacher_;
  bool source_verified_ = false;  // against the hashes that its folder states, once a start
};

// Which token stores belong to a source folder: those made with its tokenizer.json.
TokenizerIdentity tokenizer_of(const std::string& folder, const ModelConfig& source);

// The hybrid's configuration as checkpoints store it and back: which layers are kept is all that
// the recipe and the source folder do not already say.
std::vector<int64_t> kept_layers(const ModelConfig& hybrid);

}  // namespace sala
