// What a user can get wrong outside the recipe's text: one line that names the cause, and nothing
// half-written.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/runs/toy_run.h"
#include "trainer/ranks/device_info.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

const char* kShort =
    "  - align: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1, b: 1}, lr: 1e-3}\n"
    "  - score: {method: uniform}\n"
    "  - swap: {keep: 2}\n";

struct BadInput {
  const char* name;
  std::function<std::string(const ToyRun&)> spoil;  // returns further arguments
  const char* expected;                             // in the message
};

void overwrite(const std::string& path, int64_t offset, const std::string& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(offset);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void replace_in(const std::string& path, const std::string& from, const std::string& to) {
  std::ifstream in(path);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << path << " has no " << from;
  std::ofstream(path) << text.replace(at, from.size(), to);
}

std::vector<BadInput> bad_inputs() {
  return {
      {"AVariableThatIsNotSet", [](const ToyRun&) { return "--export ''"; }, "expected a path"},
      {"AnOptionOfAnother", [](const ToyRun&) { return "--ranks 2"; }, "--check"},
      {"TwoTasks", [](const ToyRun&) { return "--export x --evaluate y"; }, "--export"},
      {"NoSourceFolder",
       [](const ToyRun& toy) {
         fs::rename(toy.folder() + "/source", toy.folder() + "/elsewhere");
         return "";
       },
       "source"},
      {"NoWeights",
       [](const ToyRun& toy) {
         fs::remove(toy.folder() + "/source/model.safetensors");
         return "";
       },
       "safetensors"},
      {"TornWeights",
       [](const ToyRun& toy) {
         fs::resize_file(toy.folder() + "/source/model.safetensors", 5000);
         return "";
       },
       "model.safetensors"},
      {"UnknownFamily",
       [](const ToyRun& toy) {
         replace_in(toy.folder() + "/source/config.json", "llama", "mamba");
         return "";
       },
       "mamba"},
      {"NoStore",
       [](const ToyRun& toy) {
         fs::remove(toy.folder() + "/b.h5");
         return "";
       },
       "b.h5"},
      {"TruncatedStore",
       [](const ToyRun& toy) {
         fs::resize_file(toy.folder() + "/a.h5", 3000);
         return "";
       },
       "a.h5"},
      {"AnotherTokenizer",
       [](const ToyRun& toy) {
         std::ofstream(toy.folder() + "/source/tokenizer.json") << "{ }";
         return "";
       },
       "tokenizer"},
      {"StoreThatIsNoHdf5",
       [](const ToyRun& toy) {
         std::ofstream(toy.folder() + "/a.h5") << "text";
         return "";
       },
       "a.h5"},
      {"FlippedToken",
       [](const ToyRun& toy) {
         // Past the headers: the token data of the one large dataset.
         overwrite(toy.folder() + "/a.h5", 12000, std::string("\1\0\1\0", 4));
         return "";
       },
       "a.h5"},
      {"WindowShorterThanRows",
       [](const ToyRun& toy) {
         replace_in(toy.folder() + "/source/config.json", "\"llama\"",
                    "\"mistral\", \"sliding_window\": 32");
         return "";
       },
       "sliding_window"},
      {"FileInPlaceOfTheRunFolder",
       [](const ToyRun& toy) {
         std::ofstream(toy.run_folder("file")) << "x";
         return "--set run.folder=" + toy.run_folder("file");
       },
       "run folder"},
      {"NoSuchCheckpoint", [](const ToyRun& toy) { return "--from " + toy.folder() + "/none"; },
       "none"},
      {"UnknownKey", [](const ToyRun&) { return "--set stages.align.learning_rate=1"; },
       "learning_rate"},
      {"NothingToExport", [](const ToyRun& toy) { return "--export " + toy.folder() + "/export"; },
       "nothing to export"},
      {"ExportIntoAFullFolder",
       [](const ToyRun& toy) {
         fs::create_directories(toy.folder() + "/export");
         std::ofstream(toy.folder() + "/export/mine") << "x";
         std::ofstream(toy.recipe(), std::ios::app)
             << "  - export: {folder: " << toy.folder() << "/export}\n";
         return "";
       },
       "export"},
      {"LayerThatIsNoLayer", [](const ToyRun&) { return "--set \"stages.swap={layers: [0, 9]}\""; },
       "9 is no layer of the source, whose last is 2"},
      {"NoGpu", [](const ToyRun&) { return "--set run.device=cuda"; }, "cuda"},
  };
}

class BadInputs : public testing::TestWithParam<BadInput> {};

TEST_P(BadInputs, GiveOneLineAndLeaveNothingHalfWritten) {
  if (std::string(GetParam().name) == "NoGpu" && num_gpus() > 0) GTEST_SKIP() << "has a GPU";
  const ToyRun toy({.stages = kShort, .save_every = 0});
  const std::string arguments = GetParam().spoil(toy);
  EXPECT_NE(toy.run("run", 1, arguments), 0);
  const std::string log = toy.log("run");
  const size_t message = log.find("sala");
  ASSERT_NE(message, std::string::npos) << log;
  EXPECT_NE(log.find(GetParam().expected), std::string::npos) << log;
  int messages = 0;
  std::stringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    messages += line.rfind("sala-train:", 0) == 0 || line.rfind("sala:", 0) == 0;
  }
  EXPECT_EQ(messages, 1) << log;
  std::error_code none;
  for (const auto& entry : fs::recursive_directory_iterator(toy.folder(), none)) {
    const std::string name = entry.path().filename().string();
    EXPECT_FALSE(name.ends_with(".tmp") || name.ends_with(".writing")) << entry.path();
  }
}

INSTANTIATE_TEST_SUITE_P(All, BadInputs, testing::ValuesIn(bad_inputs()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace sala::test
