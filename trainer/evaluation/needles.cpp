// Greedy answers to needle prompts, counted by length and depth.
#include "trainer/evaluation/needles.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "data/needles.h"
#include "model/generate.h"
#include "trainer/ranks/stop_signals.h"

namespace sala {

namespace {

using Ids = std::vector<int64_t>;

// Prompts of this length that a rank answers between two looks for a signal to stop: a few seconds
// of work.
int64_t prompts_at_once(int64_t length, at::Device device) {
  const int64_t tokens = device.is_cuda() ? 512 << 10 : 4 << 10;
  return std::clamp<int64_t>(tokens / std::max<int64_t>(length, 1), 1, 64);
}

// Of each prompt, whether its greedy answer is the exact one.
std::vector<bool> found(const Model& model, Lender& weights, at::Device device,
                        const std::vector<NeedlePrompt>& needles, bool sparse) {
  GenerateOptions options;
  options.max_new_tokens = 0;
  options.sparse = sparse;
  options.device = device;
  options.cache_bytes = generation_cache_bytes(device);
  options.graph = true;  // the leases of held weights wait for nothing
  std::vector<Ids> prompts;
  for (const NeedlePrompt& needle : needles) {
    prompts.emplace_back(needle.ids.begin(), needle.ids.end());
    options.max_new_tokens =
        std::max(options.max_new_tokens, static_cast<int64_t>(needle.answer.size()));
  }
  const std::vector<Ids> out = generate_batch(model, weights, prompts, options);
  std::vector<bool> hits;
  for (size_t i = 0; i < needles.size(); ++i) {
    const auto& answer = needles[i].answer;
    hits.push_back(std::equal(answer.begin(), answer.end(), out[i].begin()));
  }
  return hits;
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
  const int64_t num_items = num_cells * per_cell;
  const int64_t per_length = static_cast<int64_t>(depths.size()) * per_cell;
  for (int64_t first = 0, end = 0; first < num_items; first = end) {
    const int64_t place = first / per_length;  // what is answered together is equally long
    end = std::min(first + run.world.size() * prompts_at_once(lengths[place], run.world.device()),
                   (place + 1) * per_length);
    if (run.world.any(stop_requested())) throw Stopped{};
    run.metrics.progress({.stage = label,
                          .unit = "needles",
                          .step = first,
                          .num_steps = num_items,
                          .seconds_left = clock.seconds_left(first, num_items)});
    run.world.together("needle retrieval", [&] {
      std::vector<NeedlePrompt> prompts;
      std::vector<int64_t> cells;
      for (int64_t item = first + run.world.rank(); item < end; item += run.world.size()) {
        const int64_t cell = item / per_cell;
        const int64_t index = item % per_length;  // so needles of all depths are different ones
        const int64_t length = lengths[cell / depths.size()];
        const double depth = depths[cell % depths.size()];
        prompts.push_back(needles->prompt(*haystack, length, depth, index, seed));
        cells.push_back(cell);
      }
      const std::vector<bool> is_hit =
          found(network.model, *held, run.world.device(), prompts, options.sparse);
      for (size_t i = 0; i < cells.size(); ++i) hits[cells[i]] += is_hit[i] ? 1.0 : 0.0;
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
