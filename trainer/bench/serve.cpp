// A prompt is really prefilled, in chunks; its first id on the host ends the time to first token.
// Decode steps run on caches that are filled with random keys and states, so that many long
// sequences need no prefill: the steps' work is the same, but for which blocks are listed.
#include "trainer/bench/serve.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <random>

#include "model/convert.h"
#include "model/generation/greedy.h"
#include "trainer/bench/serve_report.h"
#include "trainer/bench/timer.h"
#include "trainer/ranks/device_info.h"

namespace sala {

namespace {

constexpr double kGiB = 1 << 30;
constexpr int64_t kWarmUpSteps = 4;  // two plain ones, one that is captured, one replayed
constexpr double kDeviation = 0.02;  // of random weights

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

ModelConfig source_config(const BenchOptions& o) {
  ModelConfig c;
  c.family = "minicpm";
  c.num_layers = o.serve.layers;
  c.width = o.width;
  c.ffn_width = o.ffn;
  c.vocab_size = o.vocab;
  c.num_heads = o.heads.front();
  c.num_kv_heads = o.kv_heads;
  c.lightning_kv_heads = c.num_heads;
  c.head_size = o.head_size;
  c.max_position = int64_t{1} << 21;
  c.embedding_scale = 12;
  c.residual_scale = 1.4 / std::sqrt(double(c.num_layers));
  c.logit_scale = 256.0 / double(c.width);
  c.mixers.assign(c.num_layers, Mixer::kFull);
  return c;
}

// A quarter of the layers, the first and the last among them.
std::vector<int64_t> kept_layers(int64_t num_layers) {
  const int64_t count = std::min(std::max<int64_t>(num_layers / 4, 2), num_layers);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < count; ++i) {
    kept.push_back(count == 1 ? 0 : i * (num_layers - 1) / (count - 1));
  }
  return kept;
}

// Every tensor of its own memory, so that what a step reads is as much as a real model's.
void fill_randomly(HeldWeights& weights) {
  for (Weights& part : weights.parts()) {
    for (size_t i = 0; i < part.views().size(); ++i) {
      const bool norm = part.layout().entries[i].init == Init::kOnes;
      norm ? part.views()[i].fill_(1) : part.views()[i].normal_(0, kDeviation);
    }
  }
}

std::vector<int64_t> random_ids(int64_t count, int64_t vocab_size) {
  std::mt19937_64 random(1);
  std::vector<int64_t> ids(count);
  for (int64_t& id : ids) id = static_cast<int64_t>(random() % vocab_size);
  return ids;
}

// As if so many tokens of each sequence had been fed.
void fill_randomly(DecodeCache& cache, const SparseConfig& sparse, int64_t tokens) {
  constexpr int64_t kSlice = 64 << 10;
  for (LayerCache& layer : cache.layers) {
    if (layer.state.defined()) {
      layer.state.normal_();
      continue;
    }
    const at::Tensor& k = layer.keys.k;
    for (int64_t s = 0; s < k.size(0); ++s) {
      for (int64_t begin = 0; begin < tokens; begin += kSlice) {
        const int64_t n = std::min(kSlice, tokens - begin);
        const at::Tensor keys = at::randn({n, k.size(2), k.size(3)}, k.options());
        write_keys(layer.keys, s, begin, keys, at::randn_like(keys), sparse);
      }
    }
  }
  cache.lengths.set(std::vector<int64_t>(cache.num_sequences(), tokens));
}

class Serving {
 public:
  Serving(const std::string& name, const ModelConfig& config, const BenchOptions& o,
          at::Device device, ServeReport& report)
      : name_(name),
        o_(o),
        model_(config),
        dtype_(o.dtype == "bf16" ? at::kBFloat16 : at::kFloat),
        device_(device),
        weights_(model_.layouts(), dtype_, device),
        report_(report) {
    fill_randomly(weights_);
  }

  void run() {
    prefill_once(std::min<int64_t>(o_.tokens.front(), o_.serve.chunk));  // libraries set up
    for (const int64_t batch : o_.serve.batches) {
      for (const int64_t tokens : o_.tokens) row(batch, tokens);
    }
  }

 private:
  DecodeCacheShape shape(int64_t batch, int64_t tokens) const {
    return {.num_sequences = batch,
            .capacity = tokens + kWarmUpSteps + o_.serve.steps,
            .dtype = dtype_,
            .device = device_};
  }

  double memory_bytes() const {
    const double whole = device_memory_bytes(device_);
    return o_.serve.most_gib > 0 ? std::min(o_.serve.most_gib * kGiB, whole) : whole;
  }

  // Seconds from the call to the first id on the host.
  double prefill_once(int64_t tokens) {
    const std::vector<std::vector<int64_t>> prompt{random_ids(tokens, model_.config().vocab_size)};
    DecodeCache cache(model_.config(), shape(1, tokens));
    synchronize(device_);
    const double start = seconds_now();
    Greedy greedy(model_, weights_, cache, {.max_new_tokens = 1, .prefill_chunk = o_.serve.chunk});
    greedy.prefill(prompt);
    static_cast<void>(greedy.ids().cpu());
    return seconds_now() - start;
  }

  double prefill(int64_t tokens) {
    double best = prefill_once(tokens);
    if (best < 2) best = std::min(best, prefill_once(tokens));
    prefilled_.push_back({double(tokens), best});
    return best;
  }

  // Two shorter prompts, where no row tells yet how long this one takes.
  void prefill_parts_of(int64_t tokens) {
    if (!prefilled_.empty()) return;
    for (const int64_t part : {tokens / 16, tokens / 8}) {
      if (part > 0) prefill(part);
    }
  }

  // From the prompts so far: a n + b n^2 through the last two, a line through one.
  double expected_seconds(int64_t tokens) const {
    if (prefilled_.empty()) return 0;
    const auto [n, t] = prefilled_.back();
    const double linear = t / n * double(tokens);
    if (prefilled_.size() < 2) return linear;
    const auto [m, u] = prefilled_[prefilled_.size() - 2];
    const double b = m == n ? 0 : std::max((t / n - u / m) / (n - m), 0.0);
    return linear + b * double(tokens) * (double(tokens) - n);
  }

  double step_seconds(int64_t batch, int64_t tokens) {
    DecodeCache cache(model_.config(), shape(batch, tokens));
    fill_randomly(cache, model_.config().sparse, tokens);
    Greedy greedy(model_, weights_, cache,
                  {.max_new_tokens = kWarmUpSteps + o_.serve.steps + 1, .graph = true});
    const at::TensorOptions index = at::TensorOptions(device_).dtype(at::kLong);
    greedy.begin(at::zeros({batch}, index));
    for (int64_t i = 0; i < kWarmUpSteps; ++i) greedy.step();
    synchronize(device_);
    const double start = seconds_now();
    for (int64_t i = 0; i < o_.serve.steps; ++i) greedy.step();
    synchronize(device_);
    return (seconds_now() - start) / double(o_.serve.steps);
  }

  void row(int64_t batch, int64_t tokens) {
    ServeRow row{.model = name_, .batch = batch, .tokens = tokens};
    row.cache_bytes = double(DecodeCache::num_bytes(model_.config(), shape(batch, tokens)));
    double weight_bytes = 0;
    for (const Weights& part : weights_.parts()) weight_bytes += double(part.flat.nbytes());
    const double memory = memory_bytes();
    if (row.cache_bytes + weight_bytes > memory) {
      row.note = fmt::format("does not fit: {:.0f} GiB of weights and {:.0f} of caches, of {:.0f}",
                             weight_bytes / kGiB, row.cache_bytes / kGiB, memory / kGiB);
      report_.row(row);
      return;
    }
    try {
      // Every prompt takes that long, so one says it all.
      if (batch == 1) prefill_parts_of(tokens);
      const double expected = batch == 1 ? expected_seconds(tokens) : 0;
      if (expected > o_.serve.most_seconds) {
        row.note = fmt::format("prefill left out: about {:.0f} s (--most-seconds)", expected);
      } else if (batch == 1) {
        row.first_token_s = prefill(tokens);
      }
      release_unused_memory(device_);
      row.step_s = step_seconds(batch, tokens);
    } catch (const c10::OutOfMemoryError&) {
      row.note = "does not fit in the memory";
    }
    release_unused_memory(device_);
    report_.row(row);
  }

  std::string name_;
  const BenchOptions& o_;
  Model model_;
  at::ScalarType dtype_;
  at::Device device_;
  HeldWeights weights_;
  ServeReport& report_;
  std::vector<std::pair<double, double>> prefilled_;  // tokens, seconds
};

}  // namespace

void run_serve(const BenchOptions& o, at::Device device) {
  const at::NoGradGuard no_grad;
  at::manual_seed(1);
  if (o.serve.most_gib > 0) limit_device_memory(device, o.serve.most_gib * kGiB);
  const ModelConfig source = source_config(o);
  SparseConfig sparse;
  const ModelConfig hybrid =
      hybrid_config(source, kept_layers(source.num_layers), sparse, /*keep_qk_norm=*/false);
  ServeReport report(device_name(device), o);
  for (const auto& [name, config] : {std::pair{"full", source}, {"hybrid", hybrid}}) {
    Serving(name, config, o, device, report).run();
    release_unused_memory(device);
  }
  report.gains("full", "hybrid");
}

}  // namespace sala
