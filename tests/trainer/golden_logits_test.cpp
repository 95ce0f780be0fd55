// Logits of folders written by other software: every family, every RoPE kind, and hybrids in the
// release format (tests/golden/README.md says where each came from).
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/files/atomic_file.h"
#include "data/files/hdf5_file.h"
#include "model/forward.h"
#include "model/generation/decoder.h"
#include "model/model.h"
#include "trainer/folder/reader.h"

namespace sala {

namespace {

namespace fs = std::filesystem;

const std::string kGolden = SALA_SOURCE_DIR "/tests/golden";

std::vector<std::string> golden_folders() {
  std::vector<std::string> folders;
  for (const auto& entry : fs::recursive_directory_iterator(kGolden)) {
    if (entry.path().filename() == "logits.h5") {
      folders.push_back(fs::relative(entry.path().parent_path(), kGolden).string());
    }
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

struct Loaded {
  explicit Loaded(const std::string& folder)
      : model(read_model_config(folder)), weights(model.layouts(), at::kFloat, at::kCPU) {
    read_weights(folder, weights.parts());
  }
  at::Tensor features(const Batch& batch, bool sparse) {
    return hidden(model, weights, model.env(batch, sparse));
  }

  Model model;
  HeldWeights weights;
};

at::Tensor logits_of(Loaded& loaded, const Batch& batch) {
  return logits(loaded.model, loaded.weights, loaded.features(batch, true));
}

std::vector<std::vector<int64_t>> read_rows(const std::string& folder) {
  return nlohmann::json::parse(read_text_file(folder + "/ids.json"))
      .get<std::vector<std::vector<int64_t>>>();
}

}  // namespace

class GoldenFolder : public testing::TestWithParam<std::string> {};

TEST_P(GoldenFolder, LogitsAgreeTo1e4) {
  const std::string folder = kGolden + "/" + GetParam();
  Loaded loaded(folder);
  const auto rows = read_rows(folder);
  const Hdf5File file = Hdf5File::open(folder + "/logits.h5");
  const auto shape = file.shape("logits");
  for (size_t b = 0; b < rows.size(); ++b) {
    at::Tensor expected = at::empty({shape[1], shape[2]});
    file.read("logits", static_cast<int64_t>(b), 1, expected.data_ptr<float>());
    const Batch batch = single_document(rows[b], 0, at::kCPU);
    const at::Tensor logits = logits_of(loaded, batch);
    EXPECT_LE((logits - expected).abs().max().item<double>(), 1e-4) << "row " << b;
  }
}

TEST_P(GoldenFolder, DecodingWithKeptStateGivesTheLogitsOfOnePass) {
  const std::string folder = kGolden + "/" + GetParam();
  Loaded loaded(folder);
  std::vector<int64_t> row = read_rows(folder)[0];
  row.resize(std::min<size_t>(row.size(), 60));
  const Batch whole = single_document(row, 0, at::kCPU);
  const at::Tensor expected = loaded.features(whole, false);
  DecodeCache cache(
      loaded.model.config(),
      {.num_sequences = 1, .capacity = static_cast<int64_t>(row.size()), .sparse = false});
  Decoder decoder(loaded.model, loaded.weights, cache, 16);
  const std::vector<int64_t> prompt(row.begin(), row.begin() + 7);
  decoder.prefill({prompt});
  for (size_t t = prompt.size(); t < row.size(); ++t) {
    const at::Tensor x = decoder.step(at::tensor({row[t]}, at::kLong));
    const double error = (x[0] - expected[static_cast<int64_t>(t)]).abs().max().item<double>();
    // longrope chooses its factors by the tokens seen so far, so early positions differ by design.
    if (loaded.model.config().rope.kind != RopeConfig::Kind::kLongrope) {
      EXPECT_LE(error, 1e-4) << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenFolder, testing::ValuesIn(golden_folders()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST(GoldenHybrid, BlockListsAreEqual) {
  for (const char* name : {"group1_bias", "group2", "group3", "odd_length"}) {
    const std::string folder = kGolden + "/hybrid/" + name;
    Loaded loaded(folder);
    const Batch batch = single_document(read_rows(folder)[0], 0, at::kCPU);
    const Env env = loaded.model.env(batch, true);
    const Hdf5File file = Hdf5File::open(folder + "/logits.h5");
    at::Tensor x;
    for (size_t u = 0; u < loaded.model.units().size(); ++u) {
      at::NoGradGuard no_grad;
      Saved saved;
      const Unit& unit = *loaded.model.units()[u];
      x = unit.forward(loaded.weights.lease(unit.parts), x, env, &saved);
      const std::string dataset = "blocks/" + std::to_string(static_cast<int64_t>(u) - 1);
      if (u == 0 || !file.exists(dataset)) continue;
      const auto shape = file.shape(dataset);
      at::Tensor expected = at::empty({shape[0], shape[1], shape[2]}, at::kInt);
      file.read("blocks/" + std::to_string(u - 1), 0, shape[0], expected.data_ptr<int32_t>());
      EXPECT_TRUE(at::equal(saved.get("blocks").to(at::kInt), expected))
          << name << " layer " << u - 1;
    }
  }
}

}  // namespace sala
