// Exports of whole runs: of every model that trains, again when they are gone or were cut short,
// and never over anything else.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "data/files/atomic_file.h"
#include "tests/runs/toy_run.h"
#include "trainer/folder/inspect.h"
#include "trainer/folder/reader.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

ToyOptions continual_training() {
  ToyOptions options;
  options.stages =
      "  - train: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3}\n"
      "  - export: {folder: none}\n";
  return options;
}

std::string to(const std::string& folder) { return "--set stages.export.folder=" + folder; }

}  // namespace

TEST(Export, ContinualTrainingKeepsTheSourcesFormatAndIsASourceAgain) {
  const ToyRun toy(continual_training());
  const std::string source = toy.folder() + "/source", first = toy.folder() + "/first",
                    second = toy.folder() + "/second";
  std::ofstream(source + "/README.md") << "---\nlicense: apache-2.0\n---\n# Toy\n";
  ASSERT_EQ(toy.run("a", 1, to(first)), 0) << toy.log("a");
  ASSERT_EQ(toy.run("b", 2, to(second) + " --set source=" + first), 0) << toy.log("b");
  nlohmann::json expected = read_config_json(source);
  expected["torch_dtype"] = "bfloat16";
  EXPECT_EQ(read_config_json(first), expected);
  EXPECT_EQ(read_config_json(second), expected);
  EXPECT_NE(read_text_file(first + "/model.safetensors"),
            read_text_file(second + "/model.safetensors"));
  const std::string card = read_text_file(first + "/README.md");
  EXPECT_EQ(card.find("---\nbase_model: source\nlicense: apache-2.0\nlibrary_name: transformers\n"),
            0u)
      << card;
  EXPECT_NE(toy.log("a").find("exported to " + first + ": llama, "), std::string::npos);
  EXPECT_NE(toy.log("a").find("transformers loads it as it loads the source (llama)"),
            std::string::npos);
}

TEST(Export, IsMadeAgainWhenItIsGoneOrWasCutShort) {
  const ToyRun toy(continual_training());
  const std::string folder = toy.folder() + "/export";
  ASSERT_EQ(toy.run("run", 1, to(folder)), 0) << toy.log("run");
  const std::string weights = read_text_file(folder + "/model.safetensors");
  fs::remove_all(folder);
  ASSERT_EQ(toy.run("run", 1, to(folder)), 0) << toy.log("run");
  EXPECT_NE(toy.log("run").find("the export " + folder + " is gone: making it again"),
            std::string::npos);
  EXPECT_EQ(read_text_file(folder + "/model.safetensors"), weights);
  // As if killed in the export, and another value of the recipe changed meanwhile.
  fs::remove_all(toy.checkpoint_of("run", "done"));
  fs::remove(folder + "/config.json");
  fs::remove(folder + "/README.md");
  const std::string change = " --set stages.train.save_every=7";
  ASSERT_EQ(toy.run("run", 1, to(folder) + change), 0) << toy.log("run");
  EXPECT_EQ(read_text_file(folder + "/model.safetensors"), weights);
  // Another run must not take the folder for its own.
  EXPECT_NE(toy.run("other", 1, to(folder)), 0);
  EXPECT_NE(toy.log("other").find("finished export of another run"), std::string::npos)
      << toy.log("other");
  EXPECT_EQ(read_text_file(folder + "/model.safetensors"), weights);
}

TEST(Export, OfAHybridThatWasTheSource) {
  const ToyRun toy;
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  const std::string hybrid = toy.export_folder("run"), again = toy.folder() + "/again";
  std::ifstream file(toy.recipe());
  std::stringstream text;
  text << file.rdbuf();
  std::string recipe = text.str();
  recipe = recipe.substr(0, recipe.find("stages:\n")) + "stages:\n" + continual_training().stages;
  std::ofstream(toy.recipe()) << recipe;
  ASSERT_EQ(toy.run("further", 1, "--set source=" + hybrid + " " + to(again)), 0)
      << toy.log("further");
  EXPECT_EQ(read_config_json(again), read_config_json(hybrid));
  EXPECT_EQ(read_model_config(again).family, "minicpm_sala");
  const std::string run = describe_folder(toy.run_folder("run"));
  EXPECT_NE(run.find("run folder; its newest checkpoint is "), run.npos) << run;
  EXPECT_NE(run.find("checkpoint  of the finished run"), run.npos) << run;
  EXPECT_NE(run.find("hybrid, kept layers "), run.npos) << run;
  const std::string early = describe_folder(toy.checkpoint_of("run", "score"));
  EXPECT_NE(early.find("checkpoint  stage score, 0 steps"), early.npos) << early;
  EXPECT_NE(early.find("not converted or trained yet"), early.npos) << early;
}

}  // namespace sala::test
