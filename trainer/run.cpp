// The state that stages hand on, to and from checkpoints.
#include "trainer/run.h"

#include "data/files/atomic_file.h"
#include "data/files/hash.h"
#include "model/convert.h"
#include "model/parts.h"
#include "trainer/folder/reader.h"
#include "trainer/ranks/agreement.h"
#include "trainer/ranks/tensor_fingerprint.h"

namespace sala {

namespace {

std::string tokenizer_hash(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!path_exists(path)) return {};  // trains without; its stores are not compared
  const std::string text = read_text_file(path);
  return xxh3_64_hex(text.data(), text.size());
}

}  // namespace

Run::Run(Recipe& recipe, World& world, Metrics& metrics)
    : recipe(recipe),
      world(world),
      metrics(metrics),
      folder(recipe.run.folder),
      source(read_model_config(recipe.source)),
      tokenizer(tokenizer_of(recipe.source, source)) {}

TokenizerIdentity tokenizer_of(const std::string& folder, const ModelConfig& source) {
  return {tokenizer_hash(folder), source.vocab_size};
}

Model& Run::teacher() {
  if (!teacher_) {
    auto model = std::make_unique<Model>(source, world.compute_dtype(), world.device());
    world.together("reading " + recipe.source,
                   [&] { read_weights(recipe.source, model->part_pointers()); });
    Facts weights;
    for (const Weights& part : model->parts()) {
      weights["weights of " + part.layout().name + " in " + recipe.source] =
          world.size() > 1 ? tensor_fingerprint(part.flat) : "";
    }
    require_equal_facts(world, weights);
    teacher_ = std::move(model);
  }
  return *teacher_;
}

void Run::make_student(const ModelConfig& config) {
  student.parts.clear();
  student.model = std::make_unique<Model>(config, world.compute_dtype(), world.device());
  for (Weights& part : student.model->parts()) student.parts.push_back(make_trained(part));
}

std::vector<int64_t> kept_layers(const ModelConfig& hybrid) {
  std::vector<int64_t> kept;
  for (int64_t l = 0; l < hybrid.num_layers; ++l) {
    if (hybrid.mixers[l] == Mixer::kSparse) kept.push_back(l);
  }
  return kept;
}

void Run::save(StateWriter& out, bool boundary) const {
  nlohmann::json state = {{"scores", scores},
                          {"data", data_state},
                          {"evaluations", evaluations},
                          {"verdicts", verdicts},
                          {"tokens_seen", tokens_seen},
                          {"inputs", inputs},
                          {"forked_from", forked_from},
                          {"has_student", student.model != nullptr},
                          {"num_aligned", aligned.size()},
                          {"aligned_is_final", aligned_is_final},
                          {"metrics_bytes", metrics.size()}};
  if (student.model) {
    state["hybrid"] = student.model->config().is_hybrid();
    state["kept"] = kept_layers(student.model->config());
  }
  out.json("run", state);
  for (const auto& mixer : aligned) {
    const std::string part = "aligned." + mixer->layout().name;
    if (aligned_is_final) {
      out.frozen(part, "master", mixer->layout(), mixer->flat);
    } else {
      out.tensor(part, "master", mixer->layout(), mixer->flat);
    }
  }
  for (const TrainedPart& part : student.parts) {
    const Layout& layout = part.weights->layout();
    if (boundary) {
      out.frozen(layout.name, "master", layout, part.master);
    } else {
      out.tensor(layout.name, "master", layout, part.master);
    }
  }
}

void Run::load(StateReader& in) {
  const nlohmann::json state = in.json("run");
  scores = state.at("scores");
  data_state = state.at("data");
  evaluations = state.at("evaluations");
  verdicts = state.at("verdicts").get<std::vector<std::string>>();
  tokens_seen = state.at("tokens_seen").get<int64_t>();
  forked_from = state.at("forked_from").get<std::string>();
  if (state.at("has_student").get<bool>()) {
    const auto kept = state.at("kept").get<std::vector<int64_t>>();
    const bool keep_norm = recipe.model.qk_norm == "keep";
    make_student(state.at("hybrid").get<bool>() && !source.is_hybrid()
                     ? hybrid_config(source, kept, recipe.model.sparse, keep_norm)
                     : source);
    for (TrainedPart& part : student.parts) {
      const Layout& layout = part.weights->layout();
      in.tensor(layout.name, "master", layout, part.master);
      refresh(part);
    }
  }
  const ModelConfig all_linear = hybrid_config(source, {}, recipe.model.sparse, false);
  aligned.clear();
  aligned_is_final = state.at("aligned_is_final").get<bool>();
  for (int64_t l = 0; l < state.at("num_aligned").get<int64_t>(); ++l) {
    aligned.push_back(std::make_unique<Weights>(mixer_layout(all_linear, l, Mixer::kLightning),
                                                at::kFloat, world.device()));
    const Layout& layout = aligned.back()->layout();
    in.tensor("aligned." + layout.name, "master", layout, aligned.back()->flat);
  }
}

}  // namespace sala
