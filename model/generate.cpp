// Prompts go in waves, the longest first: as many of similar length as the cache's bytes hold are
// prefilled, then decoded together until all have stopped. New ids stay on the device; the host
// looks at them every few steps, to end a wave early, and at its end.
#include "model/generate.h"

#include <algorithm>
#include <numeric>

#include "model/generation/greedy.h"

namespace sala {

namespace {

using Ids = std::vector<int64_t>;

constexpr int64_t kStepsBetweenLooks = 8;
constexpr int64_t kRoundTokens = 64;

at::ScalarType type_of(Lender& weights) {
  return weights.lease(Model::embedding_part())[0]["embed_tokens.weight"].scalar_type();
}

// The number of ids that row keeps: up to and with the first stop id. -1: none of them stops.
int64_t stopped_at(const int64_t* row, int64_t count, const Ids& stop_ids) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::find(stop_ids.begin(), stop_ids.end(), row[i]) != stop_ids.end()) return i + 1;
  }
  return -1;
}

// The new ids of each sequence as far as they are kept; `going_on`: how many have not stopped.
std::vector<Ids> kept_ids(const at::Tensor& ids, const Ids& stop_ids, int64_t& going_on) {
  const at::Tensor host = ids.contiguous().cpu();
  const int64_t count = host.size(1);
  std::vector<Ids> out;
  going_on = 0;
  for (int64_t s = 0; s < host.size(0); ++s) {
    const int64_t* row = host.const_data_ptr<int64_t>() + s * count;
    const int64_t kept = stopped_at(row, count, stop_ids);
    going_on += kept < 0;
    out.emplace_back(row, row + (kept < 0 ? count : kept));
  }
  return out;
}

std::vector<Ids> run_wave(const Model& model, Lender& weights, const std::vector<Ids>& prompts,
                          const DecodeCacheShape& shape, const GenerateOptions& o) {
  DecodeCache cache(model.config(), shape);
  Greedy greedy(
      model, weights, cache,
      {.max_new_tokens = o.max_new_tokens, .prefill_chunk = o.prefill_chunk, .graph = o.graph});
  greedy.prefill(prompts);
  int64_t going_on = 0;
  while (greedy.count() < o.max_new_tokens) {
    greedy.step();
    if (o.stop_ids.empty() || greedy.count() % kStepsBetweenLooks != 0) continue;
    const std::vector<Ids> so_far = kept_ids(greedy.ids(), o.stop_ids, going_on);
    if (going_on == 0) return so_far;
  }
  return kept_ids(greedy.ids(), o.stop_ids, going_on);
}

}  // namespace

std::vector<Ids> generate_batch(const Model& model, Lender& weights,
                                const std::vector<Ids>& prompts, const GenerateOptions& o) {
  TORCH_CHECK(o.max_sequences > 0, "generation takes at least one sequence at a time, got ",
              o.max_sequences);
  for (size_t i = 0; i < prompts.size(); ++i) {
    TORCH_CHECK(!prompts[i].empty(), "generation needs prompts of at least one token; number ", i,
                " of ", prompts.size(), " has none");
  }
  const at::NoGradGuard no_grad;
  std::vector<Ids> out(prompts.size());
  if (o.max_new_tokens <= 0) return out;
  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return prompts[a].size() > prompts[b].size(); });
  DecodeCacheShape shape;
  shape.num_sequences = 1;
  shape.sparse = o.sparse;
  shape.dtype = type_of(weights);
  shape.device = o.device;
  for (size_t first = 0; first < order.size();) {
    // The last id is not fed again. Rounded: waves of about the same size take the same memory.
    const auto longest = static_cast<int64_t>(prompts[order[first]].size()) + o.max_new_tokens - 1;
    shape.capacity = (longest + kRoundTokens - 1) / kRoundTokens * kRoundTokens;
    shape.num_sequences = 1;
    const int64_t of_one = std::max<int64_t>(DecodeCache::num_bytes(model.config(), shape), 1);
    shape.num_sequences = std::min({std::max<int64_t>(o.cache_bytes / of_one, 1), o.max_sequences,
                                    static_cast<int64_t>(order.size() - first)});
    std::vector<Ids> wave;
    for (int64_t s = 0; s < shape.num_sequences; ++s) wave.push_back(prompts[order[first + s]]);
    std::vector<Ids> answers = run_wave(model, weights, wave, shape, o);
    for (Ids& answer : answers) out[order[first++]] = std::move(answer);
  }
  return out;
}

Ids generate(const Model& model, Lender& weights, const Ids& prompt,
             const GenerateOptions& options) {
  return generate_batch(model, weights, {prompt}, options)[0];
}

}  // namespace sala
