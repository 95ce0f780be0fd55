// Greedy answers to needle prompts, counted by length and depth.
#include "trainer/evaluation/needles.h"

#include <memory>

#include "data/needles.h"
#include "model/generate.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

bool finds(const Model& model, Lender& weights, at::Device device, const NeedlePrompt& prompt,
           bool sparse) {
  GenerateOptions options;
  options.max_new_tokens = static_cast<int64_t>(prompt.answer.size());
  options.sparse = sparse;
  options.device = device;
  const std::vector<int64_t> ids(prompt.ids.begin(), prompt.ids.end());
  const std::vector<int64_t> out = generate(model, weights, ids, options);
  return std::equal(out.begin(), out.end(), prompt.answer.begin(), prompt.answer.end());
}

}  // namespace

void evaluate_needles(Run& run, const EvaluateOptions& options, const std::string& label,
                      Network& network, nlohmann::json& result) {
  std::unique_ptr<NeedleSet> needles;
  std::unique_ptr<Source> haystack;
  const auto seed = static_cast<uint64_t>(run.recipe.run.seed);
  const auto& lengths = options.needle_lengths;
  const auto& depths = options.needle_depths;
  const int64_t per_cell = options.needles_per_cell;
  const int64_t num_cells = static_cast<int64_t>(lengths.size() * depths.size());
  at::Tensor hits = at::zeros({num_cells}, at::kDouble);
  run.world.together("reading needles", [&] {
    needles = std::make_unique<NeedleSet>(run.recipe.data.needles, run.tokenizer);
    const auto& files = run.recipe.data.sources.at(options.needle_source).files;
    haystack = std::make_unique<Source>(SourceSpec{options.needle_source, expand_globs(files), 1.0},
                                        run.tokenizer, *run.stores);
  });
  // Ranks answer prompts of different lengths, so no lease can be shared among them.
  const std::unique_ptr<Lender> held = network.parameters.held();
  const ItemClock clock;
  for (int64_t first = 0; first < num_cells * per_cell; first += run.world.size()) {
    if (run.world.any(stop_requested())) throw Stopped{};
    run.metrics.progress({.stage = label,
                          .unit = "needles",
                          .step = first,
                          .num_steps = num_cells * per_cell,
                          .seconds_left = clock.seconds_left(first, num_cells * per_cell)});
    const int64_t item = first + run.world.rank();
    run.world.together("needle retrieval", [&] {
      if (item >= num_cells * per_cell) return;
      const int64_t cell = item / per_cell, index = item % per_cell;
      const int64_t length = lengths[cell / depths.size()];
      const double depth = depths[cell % depths.size()];
      const NeedlePrompt prompt = needles->prompt(*haystack, length, depth, index, seed);
      if (finds(network.model, *held, run.world.device(), prompt, options.sparse))
        hits[cell] += 1.0;
    });
  }
  at::Tensor on_device = hits.to(run.world.device());
  run.world.comm().all_reduce_sum(on_device);
  hits = on_device.cpu();
  for (size_t i = 0; i < lengths.size(); ++i) {
    double sum = 0;
    for (size_t j = 0; j < depths.size(); ++j) {
      const double h = hits[i * depths.size() + j].item<double>();
      sum += h;
      result["needles"].push_back({{"length", lengths[i]},
                                   {"depth", depths[j]},
                                   {"hits", static_cast<int64_t>(h)},
                                   {"count", per_cell}});
    }
    result["needle_rate"][std::to_string(lengths[i])] =
        sum / static_cast<double>(per_cell * static_cast<int64_t>(depths.size()));
  }
}

}  // namespace sala
