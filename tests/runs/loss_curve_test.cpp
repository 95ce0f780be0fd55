// The losses of recipes/smollm2_135m.yaml over 200 steps on a GPU against stored ones: a change of
// numerics that two sides of another test share would be seen here. Skipped without a GPU, or
// without the model and the text that the README's commands make.
//
// SALA_STORE_CURVE=FILE writes what it would compare: for a change that is meant.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "trainer/ranks/device_info.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;
using Curves = std::map<std::string, std::vector<double>>;  // by stage

const fs::path kRoot = SALA_SOURCE_DIR;
const fs::path kData = kRoot / "data/smollm2";
const fs::path kStored = kRoot / "tests/golden/smollm2_curve.json";

nlohmann::json read_json(const fs::path& path) {
  return nlohmann::json::parse(std::ifstream(path), nullptr, false);
}

// How rows are made of documents (data/mixture.h): in other rows other losses are right.
constexpr const char* kRows = "what fits is whole";

// What the text, the tokenizer and the rows were; empty: not there.
std::string identity_of_data() {
  std::string identity;
  for (const char* name : {"textbooks", "books"}) {
    const nlohmann::json store = read_json(kData / (std::string(name) + ".json"));
    if (!store.is_object()) return "";
    identity += store.at("settings").at("tokenizer_hash").get<std::string>() + " " +
                store.at("texts").at("xxh3").get<std::string>() + " ";
  }
  return identity + kRows;
}

Curves run_recipe(const fs::path& folder) {
  const std::string command =
      "cd " + kRoot.string() + " && " SALA_BIN_DIR "/sala-train recipes/smollm2_135m.yaml" +
      " --set run.folder=" + (folder / "run").string() + " --set stages.align.tokens=2M" +
      " --set stages.distill.tokens=3M --set stages.distill.evaluate_every=0" +
      " --set stages.train.tokens=2560K --set stages.export.folder=" +
      (folder / "export").string() + " > " + (folder / "log").string() + " 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  Curves curves;
  std::ifstream metrics(folder / "run/metrics.jsonl");
  for (std::string line; std::getline(metrics, line);) {
    const nlohmann::json event = nlohmann::json::parse(line);
    if (event.at("event") != "step") continue;
    curves[event.at("stage")].push_back(event.at("loss"));
  }
  return curves;
}

double mean_of_last(const std::vector<double>& losses, size_t count) {
  return std::accumulate(losses.end() - static_cast<std::ptrdiff_t>(count), losses.end(), 0.0) /
         static_cast<double>(count);
}

}  // namespace

TEST(LossCurve, OfSmolLm2IsTheStoredOne) {
  if (num_gpus() < 1) GTEST_SKIP() << "no GPU";
  const std::string data = identity_of_data();
  if (data.empty() || !fs::exists(kData / "model/config.json")) {
    GTEST_SKIP() << "no model and text in " << kData << ": make them as the README says";
  }
  const char* store = std::getenv("SALA_STORE_CURVE");
  nlohmann::json stored = store ? nlohmann::json::object() : read_json(kStored);
  if (!store && stored.at("data") != data) {
    GTEST_SKIP() << kData << " holds other text than the stored curve was made from, or rows were "
                 << "made otherwise then: store it anew with SALA_STORE_CURVE=FILE";
  }
  const fs::path folder = fs::temp_directory_path() / ("sala_curve_" + std::to_string(getpid()));
  fs::create_directories(folder);
  const Curves curves = run_recipe(folder);
  fs::remove_all(folder);
  if (store) {
    std::ofstream(store) << nlohmann::json{{"data", data}, {"losses", curves}}.dump(1) << "\n";
    return;
  }
  // Steps before rounding has grown, then means: runs that round otherwise meet spikes elsewhere.
  const std::map<std::string, double> first_steps{
      {"align", 1e-3}, {"distill", 1e-2}, {"train", 2e-2}};
  for (const auto& [stage, losses] : stored.at("losses").get<Curves>()) {
    ASSERT_TRUE(curves.contains(stage)) << stage;
    const std::vector<double>& now = curves.at(stage);
    ASSERT_EQ(now.size(), losses.size()) << stage;
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_NEAR(now[i], losses[i], first_steps.at(stage) * losses[i]) << stage << " step " << i;
    }
    EXPECT_NEAR(mean_of_last(now, 20), mean_of_last(losses, 20), 0.03 * mean_of_last(losses, 20))
        << stage;
  }
}

}  // namespace sala::test
