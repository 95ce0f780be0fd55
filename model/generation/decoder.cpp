// Prefill in passes over whole prompts or chunks of one; then one token of each at a time.
#include "model/generation/decoder.h"

#include <algorithm>
#include <numeric>

#include "kernels/to_device.h"
#include "model/forward.h"

namespace sala {

namespace {

// Prompts as the documents of a batch.
Batch batch_of_prompts(std::span<const std::vector<int64_t>> prompts, at::Device device) {
  std::vector<int64_t> ids, position, starts;
  for (const std::vector<int64_t>& prompt : prompts) {
    starts.push_back(static_cast<int64_t>(ids.size()));
    ids.insert(ids.end(), prompt.begin(), prompt.end());
    position.resize(ids.size());
    std::iota(position.begin() + starts.back(), position.end(), 0);
  }
  const auto T = static_cast<int64_t>(ids.size());
  Batch batch;
  batch.ids = queue_to(at::tensor(ids, at::kLong), device);
  batch.position = queue_to(at::tensor(position, at::kLong), device);
  batch.docs = Documents::from_starts(starts, T, device);
  return batch;
}

int64_t length_of(const std::vector<int64_t>& prompt) {
  return static_cast<int64_t>(prompt.size());
}

// The rows of the documents' last tokens.
at::Tensor last_rows(const at::Tensor& x, const Documents& docs) {
  std::vector<int64_t> last(docs.offsets.begin() + 1, docs.offsets.end());
  for (int64_t& row : last) --row;
  return x.index_select(0, queue_to(at::tensor(last, at::kLong), x.device()));
}

}  // namespace

Decoder::Decoder(const Model& model, Lender& weights, DecodeCache& cache, int64_t chunk)
    : model_(model), weights_(weights), cache_(cache), chunk_(chunk) {
  const ModelConfig& c = model.config();
  const at::Device device = cache.shape.device;
  TORCH_CHECK(chunk > 0, "prefill takes chunks of at least one token, got ", chunk);
  const Model::Ropes used = model.ropes();
  if (used.full) full_rope_ = StepRope(c.rope, c.head_size, c.max_position, device);
  if (used.lightning) {
    lightning_rope_ = StepRope(c.lightning_rope_config, c.head_size, c.max_position, device);
  }
  std::vector<int64_t> starts(cache.num_sequences());
  std::iota(starts.begin(), starts.end(), 0);
  one_each_ = Documents::from_starts(starts, cache.num_sequences(), device);
}

at::Tensor Decoder::feed(const Batch& batch, const CachePass& pass) {
  const Env env = model_.env(batch, cache_.shape.sparse, &pass);
  return last_rows(hidden(model_, weights_, env), batch.docs);
}

at::Tensor Decoder::prefill(const std::vector<std::vector<int64_t>>& prompts) {
  const at::Device device = cache_.shape.device;
  const auto S = static_cast<int64_t>(prompts.size());
  TORCH_CHECK(S == cache_.num_sequences(), "prefill: expected a prompt for each of ",
              cache_.num_sequences(), " sequences, got ", S);
  std::vector<at::Tensor> last;
  std::vector<int64_t> lengths;
  for (int64_t s = 0; s < S;) {
    const int64_t length = length_of(prompts[s]);
    int64_t end = s + 1, tokens = length;
    while (end < S && tokens + length_of(prompts[end]) <= chunk_) {
      tokens += length_of(prompts[end++]);
    }
    if (tokens <= chunk_) {
      last.push_back(feed(batch_of_prompts({&prompts[s], &prompts[0] + end}, device),
                          {.cache = cache_, .first_sequence = s}));
    } else {
      at::Tensor x;
      for (int64_t begin = 0; begin < length; begin += chunk_) {
        const auto from = prompts[s].begin() + begin;
        const std::vector<int64_t> ids(from, from + std::min(chunk_, length - begin));
        x = feed(
            single_document(ids, begin, device),
            {.cache = cache_, .first_sequence = s, .num_before = begin, .planned_tokens = length});
      }
      last.push_back(x);
    }
    for (; s < end; ++s) lengths.push_back(length_of(prompts[s]));
  }
  cache_.lengths.set(lengths);
  return at::cat(last);
}

at::Tensor Decoder::step(const at::Tensor& ids) {
  const at::NoGradGuard no_grad;
  cache_.lengths.add_one();
  Batch batch;
  batch.ids = ids;
  batch.position = cache_.lengths.tokens().sub(1);
  batch.docs = one_each_;
  const CachePass pass{.cache = cache_, .is_step = true};
  Env env;
  env.batch = &batch;
  env.sparse = cache_.shape.sparse;
  env.cached = &pass;
  env.full_rope = full_rope_.at(batch.position);
  env.lightning_rope = lightning_rope_.at(batch.position);
  return hidden(model_, weights_, env);
}

}  // namespace sala
