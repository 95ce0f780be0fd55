// Generation with kept state against whole forward passes: many prompts at once, prefilled whole,
// packed or in chunks; every switch of a family; sequences that begin to select blocks while others
// do not; stop ids; memory as it was said.

#include "model/generate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "model/forward.h"
#include "model/generation/decoder.h"
#include "tests/kernels/tolerance.h"
#include "tests/model/unit_cases.h"

namespace sala::test {
namespace {

using Ids = std::vector<int64_t>;

ModelConfig hybrid() {
  ModelConfig c = small_config(Mixer::kSparse);
  c.num_layers = 4;
  c.mixers = {Mixer::kSparse, Mixer::kLightning, Mixer::kFull, Mixer::kSparse};
  c.tied_head = true;
  return c;
}

Ids prompt_of(int64_t length, int64_t seed = 0) {
  Ids ids(length);
  for (int64_t i = 0; i < length; ++i) ids[i] = (i * i + 7 * seed + i / 5) % 19;
  return ids;
}

std::vector<Ids> prompts_of(const std::vector<int64_t>& lengths) {
  std::vector<Ids> prompts;
  for (const int64_t length : lengths) {
    prompts.push_back(prompt_of(length, static_cast<int64_t>(prompts.size())));
  }
  return prompts;
}

// By whole forward passes over prompt and answer so far.
std::vector<Ids> whole_passes(HeldModel& held, std::vector<Ids> prompts, int64_t count) {
  std::vector<Ids> out(prompts.size());
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (int64_t i = 0; i < count; ++i) {
      const Batch batch = single_document(prompts[p], 0, at::kCPU);
      const at::Tensor y = hidden(held.model, held.weights, held.model.env(batch, true));
      const at::Tensor last = y.narrow(0, y.size(0) - 1, 1);
      out[p].push_back(logits(held.model, held.weights, last).argmax().item<int64_t>());
      prompts[p].push_back(out[p].back());
    }
  }
  return out;
}

std::vector<Ids> one_at_a_time(HeldModel& held, const std::vector<Ids>& prompts,
                               const GenerateOptions& options) {
  std::vector<Ids> out;
  for (const Ids& prompt : prompts) {
    out.push_back(generate(held.model, held.weights, prompt, options));
  }
  return out;
}

class Generation : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(11); }
};

// Documents of 64 tokens and more select 4 blocks of 16, which is all that a shorter one has: so
// tokens that were decoded before the border are what a whole pass makes of them.
TEST_F(Generation, ABatchEqualsWholePassesWhateverItsShape) {
  HeldModel held(hybrid(), at::kFloat);
  const std::vector<Ids> prompts = prompts_of({11, 90, 1, 60, 64, 110, 63});
  const std::vector<Ids> expected = whole_passes(held, prompts, 9);
  for (const int64_t chunk : {7, 100, 16384}) {
    for (const int64_t sequences : {1, 2, 64}) {
      GenerateOptions options;
      options.max_new_tokens = 9;
      options.prefill_chunk = chunk;
      options.max_sequences = sequences;
      EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected)
          << "chunks of " << chunk << ", " << sequences << " at a time";
    }
  }
  GenerateOptions options;
  options.max_new_tokens = 9;
  options.cache_bytes = 1;  // one at a time
  EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected);
}

TEST_F(Generation, EverySwitchOfAFamilyIsDecodedAsItIsPrefilled) {
  for (const UnitCase& c : unit_cases()) {
    HeldModel held(c.config, at::kFloat);
    const std::vector<Ids> prompts = prompts_of({5, 70, 62});
    GenerateOptions options;
    options.max_new_tokens = 6;
    EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options),
              whole_passes(held, prompts, 6))
        << c.name;
  }
}

// Where the border lies above what a list holds, a token that was fed densely keeps what it saw.
TEST_F(Generation, SequencesCrossTheBorderOneByOne) {
  ModelConfig c = hybrid();
  c.sparse.dense_len = 100;
  HeldModel held(c, at::kFloat);
  const std::vector<Ids> prompts = prompts_of({97, 40, 99, 100, 93, 140, 88});
  GenerateOptions options;
  options.max_new_tokens = 14;
  const std::vector<Ids> expected = one_at_a_time(held, prompts, options);
  EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected);
  options.max_sequences = 3;
  options.prefill_chunk = 33;
  EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected);
  options.sparse = false;
  const std::vector<Ids> dense = generate_batch(held.model, held.weights, prompts, options);
  EXPECT_EQ(dense, one_at_a_time(held, prompts, options));
  EXPECT_NE(dense, expected);
}

TEST_F(Generation, LongropeTakesTheFactorsOfEachSequence) {
  ModelConfig c = small_config(Mixer::kFull);
  c.num_layers = 2;
  c.mixers = {Mixer::kFull, Mixer::kFull};
  c.rope.kind = RopeConfig::Kind::kLongrope;
  c.rope.original_max_position = 32;
  c.rope.short_factor = {1.0, 1.1, 1.2, 1.3};
  c.rope.long_factor = {2.0, 4.0, 6.0, 9.0};
  HeldModel held(c, at::kFloat);
  const std::vector<Ids> prompts = prompts_of({5, 30, 31, 32, 33, 60, 26});
  GenerateOptions options;
  options.max_new_tokens = 8;
  const std::vector<Ids> expected = one_at_a_time(held, prompts, options);
  EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected);
  options.prefill_chunk = 10;
  EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected);
}

TEST_F(Generation, StepRopeIsTheTableOfEachLength) {
  RopeConfig rope;
  rope.original_max_position = 32;
  rope.factor = 2;
  rope.short_factor = {1.0, 1.1, 1.2, 1.3};
  rope.long_factor = {2.0, 4.0, 6.0, 9.0};
  using Kind = RopeConfig::Kind;
  for (const Kind kind :
       {Kind::kDefault, Kind::kLinear, Kind::kLlama3, Kind::kLongrope, Kind::kYarn}) {
    rope.kind = kind;
    const StepRope step(rope, 8, 256, at::kCPU);
    const at::Tensor position = at::tensor({0, 30, 31, 32, 33, 200}, at::kInt);
    const RopeTable table = step.at(position);
    for (int64_t i = 0; i < position.size(0); ++i) {
      const at::Tensor one = position.narrow(0, i, 1).to(at::kLong);
      const RopeTable expected = rope_table(rope, 8, 256, one, one.item<int64_t>() + 1);
      EXPECT_TRUE(bit_equal(table.cos.narrow(0, i, 1), expected.cos));
      EXPECT_TRUE(bit_equal(table.sin.narrow(0, i, 1), expected.sin));
    }
  }
}

TEST_F(Generation, EndsWithAStopId) {
  HeldModel held(hybrid(), at::kFloat);
  const std::vector<Ids> prompts = prompts_of({30, 12, 70, 5});
  GenerateOptions options;
  options.max_new_tokens = 20;
  const std::vector<Ids> endless = generate_batch(held.model, held.weights, prompts, options);
  options.stop_ids = {endless[0][3], endless[2][6]};
  std::vector<Ids> expected = endless;
  for (Ids& ids : expected) {
    const auto stop = std::find_first_of(ids.begin(), ids.end(), options.stop_ids.begin(),
                                         options.stop_ids.end());
    if (stop != ids.end()) ids.erase(stop + 1, ids.end());
  }
  EXPECT_LE(expected[0].size(), 4u);
  EXPECT_EQ(generate_batch(held.model, held.weights, prompts, options), expected);
  EXPECT_EQ(one_at_a_time(held, prompts, options), expected);
}

TEST_F(Generation, TakesNoTokensNoPromptsAndRefusesEmptyOnes) {
  HeldModel held(hybrid(), at::kFloat);
  GenerateOptions options;
  EXPECT_TRUE(generate_batch(held.model, held.weights, {}, options).empty());
  options.max_new_tokens = 0;
  EXPECT_EQ(generate_batch(held.model, held.weights, {{1, 2}}, options), std::vector<Ids>(1));
  options.max_new_tokens = 1;
  EXPECT_EQ(generate(held.model, held.weights, {3}, options).size(), 1u);
  EXPECT_THROW(generate_batch(held.model, held.weights, {{1}, {}}, options), c10::Error);
}

TEST_F(Generation, ChunkedPrefillKeepsWhatAWholeOneKeeps) {
  HeldModel held(hybrid(), at::kFloat);
  const std::vector<Ids> prompts = prompts_of({130, 40, 71});
  const DecodeCacheShape shape{.num_sequences = 3, .capacity = 131};
  DecodeCache whole(held.model.config(), shape), chunked(held.model.config(), shape);
  const at::Tensor x = Decoder(held.model, held.weights, whole, 1000).prefill(prompts);
  const at::Tensor y = Decoder(held.model, held.weights, chunked, 23).prefill(prompts);
  EXPECT_TRUE(close(x, y));
  EXPECT_EQ(whole.lengths.host, (Ids{130, 40, 71}));
  for (int64_t l = 0; l < 4; ++l) {
    const LayerCache &a = whole.layers[l], &b = chunked.layers[l];
    if (a.state.defined()) {
      EXPECT_TRUE(close(a.state, b.state)) << l;
      continue;
    }
    for (int64_t s = 0; s < 3; ++s) {
      const auto kept = [&](const at::Tensor& keys) {
        return keys[s].narrow(0, 0, whole.lengths.host[s]);
      };
      EXPECT_TRUE(close(kept(a.keys.k), kept(b.keys.k))) << l;
      EXPECT_TRUE(close(kept(a.keys.v), kept(b.keys.v))) << l;
    }
    EXPECT_EQ(a.keys.compressed.defined(), held.model.config().mixers[l] == Mixer::kSparse);
    if (a.keys.compressed.defined()) {
      EXPECT_TRUE(close(a.keys.compressed.fine, b.keys.compressed.fine)) << l;
      EXPECT_TRUE(close(a.keys.compressed.coarse, b.keys.compressed.coarse)) << l;
    }
  }
}

TEST_F(Generation, CachesTakeTheBytesThatWereSaid) {
  for (const bool sparse : {false, true}) {
    for (const int64_t capacity : {9, 64, 500}) {
      const DecodeCacheShape shape{.num_sequences = 5, .capacity = capacity, .sparse = sparse};
      const DecodeCache cache(hybrid(), shape);
      size_t bytes = 0;
      for (const LayerCache& layer : cache.layers) {
        const CompressedKeys& c = layer.keys.compressed;
        for (const at::Tensor& x : {layer.keys.k, layer.keys.v, layer.state, c.fine, c.coarse}) {
          if (x.defined()) bytes += x.nbytes();
        }
      }
      EXPECT_EQ(static_cast<int64_t>(bytes), DecodeCache::num_bytes(hybrid(), shape));
    }
  }
}

}  // namespace
}  // namespace sala::test
