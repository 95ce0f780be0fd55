// What stages share and hand on: the teacher, the mixers in alignment, the scores, the hybrid, the
// data cursor. Everything here but the teacher is in every checkpoint.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/stores/store_catalog.h"
#include "model/model.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/journal/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/recipe/recipe.h"
#include "trainer/world.h"

namespace sala {

// A model in training: its parts with fp32 masters.
struct Student {
  std::unique_ptr<Model> model;
  std::vector<TrainedPart> parts;
};

struct Run {
  Run(Recipe& recipe, World& world, Metrics& metrics);

  Recipe& recipe;
  World& world;
  Metrics& metrics;
  std::string folder;
  ModelConfig source;           // of the folder `recipe.source`
  TokenizerIdentity tokenizer;  // token stores made with another tokenizer are refused
  std::shared_ptr<const StoreCatalog> stores = std::make_shared<StoreCatalog>();  // verified ones

  // One lightning mixer per layer (fp32), from align until swap; empty otherwise.
  std::vector<std::unique_ptr<Weights>> aligned;
  bool aligned_is_final = false;  // the align stage that made them has ended
  nlohmann::json scores;      // of the score stage: [{"layer", "score", "plain", "recall", …}]
  Student student;            // null before swap
  nlohmann::json data_state;  // the mixture's cursors; null at the start
  nlohmann::json evaluations = nlohmann::json::array();  // one object per finished evaluation
  nlohmann::json inputs;    // what it reads, by content (trainer/checks/input_identity.h)
  std::vector<std::string> verdicts;  // stages that ended worse than they began, a line each
  std::string forked_from;  // the checkpoint of another run that this one began with
  int64_t tokens_seen = 0;  // by training stages

  // The frozen source model in the compute dtype; read from its folder at first use.
  Model& teacher();
  void drop_teacher() { teacher_.reset(); }
  // Makes the hybrid (or, without kept layers, a copy of the source) the student, zero-filled.
  void make_student(const ModelConfig& config);

  // `boundary`: between two stages. The model goes where unchanged tensors are written once, so
  // that a stage that only measures adds nothing to the disk.
  void save(StateWriter& out, bool boundary) const;
  void load(StateReader& in);

 private:
  std::unique_ptr<Model> teacher_;
};

// Which token stores belong to a source folder: those made with its tokenizer.json.
TokenizerIdentity tokenizer_of(const std::string& folder, const ModelConfig& source);

// The hybrid's configuration as checkpoints store it and back: which layers are kept is all that
// the recipe and the source folder do not already say.
std::vector<int64_t> kept_layers(const ModelConfig& hybrid);

}  // namespace sala
