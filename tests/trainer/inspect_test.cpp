// sala-inspect writes where a file may stand, and takes no memory for weights that are not there.
#include "trainer/folder/inspect.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "data/files/atomic_file.h"
#include "tests/trainer/model_folders.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;

class Inspect : public ModelFolders {};

TEST_F(Inspect, ReplacesItsOwnFilesAndNothingElse) {
  InspectOptions options;
  options.folder = kGolden + "/llama_default";
  options.ids_file = options.folder + "/ids.json";
  fs::create_directory(path("folder"));
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  fs::create_symlink(path("fifo"), path("link"));
  for (const char* name : {"folder", "fifo", "link"}) {
    for (std::string InspectOptions::*target :
         {&InspectOptions::logits_file, &InspectOptions::out_file}) {
      InspectOptions bad = options;
      bad.generate = 1;
      bad.*target = path(name);
      const std::string error = error_of([&] { inspect(bad); });
      EXPECT_EQ(error.rfind(path(name) + ": expected a file or nothing to write to, found ", 0), 0u)
          << error;
    }
  }
  EXPECT_TRUE(fs::is_fifo(path("fifo")) && fs::is_directory(path("folder")));
  options.logits_file = path("logits.h5");
  for (int twice = 0; twice < 2; ++twice) inspect(options);
  EXPECT_TRUE(fs::is_regular_file(options.logits_file));
  // A slip of the hand must not cost the input.
  const std::string ids = copy_of("llama_default") + "/ids.json", before = read_text_file(ids);
  InspectOptions slip = options;
  slip.logits_file.clear();
  slip.generate = 1;
  slip.ids_file = slip.out_file = ids;
  EXPECT_NE(error_of([&] { inspect(slip); }).find("holds no continuations"), std::string::npos);
  slip.lists_file = options.logits_file;
  slip.out_file.clear();
  EXPECT_NE(error_of([&] { inspect(slip); }).find("holds no block lists"), std::string::npos);
  EXPECT_EQ(read_text_file(ids), before);
}

TEST_F(Inspect, ClaimsOfAConfigTakeNoMemory) {
  InspectOptions options;
  options.folder = copy_of("llama_default");
  options.ids_file = options.folder + "/ids.json";
  options.generate = 1;
  nlohmann::json config = read_config_json(options.folder);
  for (const char* key : {"hidden_size", "intermediate_size"}) config[key] = 1 << 20;
  config["vocab_size"] = 1 << 28;
  config["num_hidden_layers"] = 10'000;
  write_file_atomically(options.folder + "/config.json", config.dump());
  EXPECT_NE(error_of([&] { inspect(options); }).find("missing tensors: "), std::string::npos);
}

}  // namespace
}  // namespace sala::test
