// The state that stages hand on, to and from checkpoints.
#include "trainer/run.h"

#include "data/files/atomic_file.h"
#include "data/files/hash.h"
#include "model/convert.h"
#include "model/weights/parts.h"
#include "trainer/checkpoint/saved_shares.h"
#include "trainer/folder/reader.h"
#include "trainer/folder/shared_reading.h"
#include "trainer/planning/plan.h"
#include "trainer/start/fork.h"

namespace sala {

namespace {

std::string tokenizer_hash(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!path_exists(path)) return {};  // trains without; its stores are not compared
  const std::string text = read_text_file(path);
  return xxh3_64_hex(text.data(), text.size());
}

void publish_all(Parameters& parameters) {
  for (size_t p = 0; p < parameters.num_parts(); ++p) parameters.publish(p);
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

Parameters::Options Run::holding(bool trains) const {
  return sala::holding(recipe, world.compute_dtype(), world.device(), trains);
}

ParameterComms Run::parameter_comms() const {
  // Where every rank holds all weights nothing is gathered: no communicator for it.
  if (recipe.run.sharding == "none") return {&world.comm(), &world.reduce_comm()};
  const World::ShardComms comms = world.shard_comms(static_cast<int>(recipe.run.shard_ranks));
  return {comms.gather, comms.reduce, comms.copies};
}

void Run::read_source(const std::vector<LayoutPtr>& layouts,
                      const std::function<bool(size_t part)>& wanted,
                      const std::function<void(size_t part, Weights& weights)>& take) {
  read_on_all(world, {recipe.source, layouts, !source_verified_}, wanted, take);
  source_verified_ = true;
}

Network& Run::teacher() {
  if (teacher_) return *teacher_;
  auto network = std::make_unique<Network>(source, holding(/*trains=*/false), parameter_comms());
  read_source(
      network->model.layouts(), [](size_t) { return true; },
      [&](size_t p, Weights& part) { network->parameters.set_whole(p, part.flat); });
  teacher_ = std::move(network);
  return *teacher_;
}

void Run::make_student(const ModelConfig& config) {
  student.reset();
  student = std::make_unique<Network>(config, holding(/*trains=*/true), parameter_comms());
}

void Run::make_aligned(const ModelConfig& config) {
  std::vector<LayoutPtr> layouts;
  for (const Layout& layout : aligned_layouts(config)) {
    layouts.push_back(std::make_shared<const Layout>(layout));
  }
  aligned = std::make_unique<Parameters>(layouts, holding(/*trains=*/true), parameter_comms());
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
                          {"forked_from", recipe.begin.checkpoint},
                          {"began_with", beginning_record(recipe.begin)},
                          {"has_student", student != nullptr},
                          {"has_aligned", aligned != nullptr},
                          {"aligned_is_final", aligned_is_final},
                          {"metrics_bytes", metrics.size()}};
  if (student) {
    state["hybrid"] = student->model.config().is_hybrid();
    state["kept"] = kept_layers(student->model.config());
  }
  out.json("run", state);
  if (aligned) save_masters(out, *aligned, "aligned.", aligned_is_final);
  if (student) save_masters(out, student->parameters, "", boundary);
}

void Run::load(StateReader& in) {
  const nlohmann::json state = in.json("run");
  scores = state.at("scores");
  data_state = state.at("data");
  evaluations = state.at("evaluations");
  verdicts = state.at("verdicts").get<std::vector<std::string>>();
  tokens_seen = state.at("tokens_seen").get<int64_t>();
  if (state.at("has_student").get<bool>()) {
    const auto kept = state.at("kept").get<std::vector<int64_t>>();
    const bool keep_norm = recipe.model.qk_norm == "keep";
    make_student(state.at("hybrid").get<bool>() && !source.is_hybrid()
                     ? hybrid_config(source, kept, recipe.model.sparse, keep_norm)
                     : source);
    load_masters(in, student->parameters, "");
  }
  aligned_is_final = state.at("aligned_is_final").get<bool>();
  aligned.reset();
  if (state.at("has_aligned").get<bool>()) {
    make_aligned(hybrid_config(source, {}, recipe.model.sparse, false));
    load_masters(in, *aligned, "aligned.");
  }
}

void Run::require_equal_copies() {
  // Both are collectives, for every rank.
  const bool student_is = !student || equals_first_copy(student->parameters);
  const bool aligned_is = !aligned || equals_first_copy(*aligned);
  world.together("comparing the copies of the model", [&] {
    if (student_is && aligned_is) return;
    throw std::runtime_error(
        "weights are not those of the first group of ranks (run.shard_ranks): a device or a link "
        "fails without saying so; nothing was saved");
  });
}

void Run::publish_loaded() {
  if (student) publish_all(student->parameters);
  if (aligned) publish_all(*aligned);
}

}  // namespace sala
