// Exports: export → import → export is the same bytes; in any folder that is there and empty, and
// in none that holds what no export wrote.
#include "trainer/folder/export.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "data/files/atomic_file.h"
#include "tests/trainer/model_folders.h"
#include "trainer/folder/export_target.h"
#include "trainer/folder/inspect.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<std::string> export_to(const std::string& folder, const Loaded& model,
                                   ExportOptions options = {}) {
  options.folder = folder;
  if (options.maker.empty()) options.maker = "a test";
  return export_model(
      model.config, model.layouts, [&](const std::string& name) { return model.tensor(name); },
      options);
}

ExportOptions by(const std::string& maker) {
  ExportOptions options;
  options.maker = maker;
  return options;
}

class ExportFolder : public ModelFolders {};

TEST_F(ExportFolder, ExportImportExportIsByteIdentical) {
  for (const char* name : {"group1_bias", "group2", "group3", "odd_length"}) {
    const Loaded first = load(kGolden + "/hybrid/" + name);
    ExportOptions options;
    options.max_shard_bytes = 500'000;
    options.model_card = "# A hybrid\n";
    export_to(path("a"), first, options);
    const Loaded second = load(path("a"));
    for (size_t i = 0; i < first.parts.size(); ++i) {
      EXPECT_TRUE(at::equal(first.parts[i].flat, second.parts[i].flat)) << name;
    }
    options.source_folder = path("a");
    export_to(path("b"), second, options);
    EXPECT_EQ(contents(path("a")), contents(path("b"))) << name;
    EXPECT_EQ(contents(path("a")).count("model.safetensors.index.json"), 1u) << name;
    fs::remove_all(path("a"));
    fs::remove_all(path("b"));
  }
}

TEST_F(ExportFolder, AnExportKeepsTheGoldenTensors) {
  const std::string golden = kGolden + "/hybrid/group2";
  export_to(path("a"), load(golden, at::kBFloat16));
  // Ours sorts and lays out as the reference library did: the same file.
  EXPECT_EQ(read_text_file(path("a/model.safetensors")),
            read_text_file(golden + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(path("a/model.safetensors.index.json")));
}

TEST_F(ExportFolder, TokenizerFilesTravel) {
  fs::create_directories(path("tokenizer"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json", "unrelated.txt"}) {
    write_file_atomically(path("tokenizer/") + name, std::string("content of ") + name);
  }
  ExportOptions options;
  options.source_folder = path("tokenizer");
  export_to(path("a"), load(kGolden + "/hybrid/group2"), options);
  const auto files = contents(path("a"));
  EXPECT_EQ(files.at("tokenizer.json"), "content of tokenizer.json");
  EXPECT_EQ(files.at("generation_config.json"), "content of generation_config.json");
  EXPECT_EQ(files.count("unrelated.txt"), 0u);
  EXPECT_EQ(files.count("README.md"), 0u);
}

// transformers would else ask the model's code for the tokenizer's class, and transformers 4 give
// token_type_ids, which no hybrid takes.
TEST_F(ExportFolder, ATokenizerWithoutAClassGetsOne) {
  fs::create_directories(path("tokenizer"));
  write_file_atomically(path("tokenizer/tokenizer.json"), "{}");
  ExportOptions options;
  options.source_folder = path("tokenizer");
  const auto class_in = [&](const char* folder) {
    export_to(path(folder), load(kGolden + "/hybrid/odd_length"), options);
    const auto config = json::parse(read_text_file(path(folder) + "/tokenizer_config.json"));
    EXPECT_EQ(config.value("eos_token", "none"), std::string(folder) == "a" ? "none" : "</s>");
    const bool ours = config["tokenizer_class"] == "PreTrainedTokenizerFast";
    EXPECT_EQ(config.value("model_input_names", json()),
              ours ? json::array({"input_ids", "attention_mask"}) : json());
    return config["tokenizer_class"].get<std::string>();
  };
  EXPECT_EQ(class_in("a"), "PreTrainedTokenizerFast");
  const std::string config = path("tokenizer/tokenizer_config.json");
  write_file_atomically(config, R"({"eos_token": "</s>"})");
  EXPECT_EQ(class_in("b"), "PreTrainedTokenizerFast");
  write_file_atomically(config, R"({"eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"})");
  EXPECT_EQ(class_in("c"), "LlamaTokenizer");
  write_file_atomically(config,
                        R"({"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"})");
  EXPECT_EQ(class_in("d"), "PreTrainedTokenizerFast");
}

// However deep it is nested: at the end of a long run nothing of it may end the program.
TEST_F(ExportFolder, ATokenizerConfigThatCannotBeReadTravelsAsItIs) {
  fs::create_directories(path("tokenizer"));
  write_file_atomically(path("tokenizer/tokenizer.json"), "{}");
  ExportOptions options;
  options.source_folder = path("tokenizer");
  const std::string deep(200000, '[');
  for (const std::string& text : {std::string("{"), "{\"a\":" + deep + "}"}) {
    write_file_atomically(path("tokenizer/tokenizer_config.json"), text);
    const std::string folder = path("out" + std::to_string(text.size()));
    export_to(folder, load(kGolden + "/hybrid/odd_length"), options);
    EXPECT_EQ(read_text_file(folder + "/tokenizer_config.json"), text);
  }
}

TEST_F(ExportFolder, ExportSaysWhoLoadsIt) {
  const auto lines = export_to(path("a"), load(kGolden + "/hybrid/group1_bias"));
  ASSERT_GE(lines.size(), 2u);
  EXPECT_EQ(lines[0].find("exported to " + path("a") + ": minicpm_sala, "), 0u) << lines[0];
  EXPECT_EQ(lines[1].find("transformers loads it: version 4.56 or later, or 5"), 0u) << lines[1];
  EXPECT_NE(lines[2].find("SGLang does not load it: attention biases"), std::string::npos)
      << lines[2];
  EXPECT_NE(describe_folder(path("a")).find(lines[1]), std::string::npos);
  const std::string bare = describe_folder(kGolden + "/hybrid/group1_bias");
  EXPECT_NE(bare.find("transformers does not load it offline: the folder has no modelling code"),
            std::string::npos)
      << bare;
}

TEST_F(ExportFolder, ARefusedOrFailedExportLeavesNothing) {
  const Loaded good = load(kGolden + "/hybrid/group2");
  Loaded bad = good;
  bad.config.sparse_qk_norm = true;
  EXPECT_NE(error_of([&] {
              export_to(path("a"), bad);
            }).find("cannot hold this model: the sparse layers"),
            std::string::npos);
  bad = load(kGolden + "/hybrid/group2");
  bad.tensor("model.norm.weight")[0] = std::nan("");
  EXPECT_NE(error_of([&] { export_to(path("a"), bad); }).find("model.norm.weight holds NaN"),
            std::string::npos);
  bad = good;
  bad.layouts.pop_back();
  EXPECT_THROW(export_to(path("a"), bad), c10::Error);
  ExportOptions options;
  options.source_folder = path("nowhere");
  EXPECT_NE(error_of([&] { export_to(path("a"), good, options); }).find("tokenizer"),
            std::string::npos);
  EXPECT_TRUE(fs::is_empty(root_));
  fs::create_directories(path("a"));
  write_file_atomically(path("a/precious"), "x");
  EXPECT_NE(error_of([&] { export_to(path("a"), good); }).find("a: has content"),
            std::string::npos);
  EXPECT_EQ(contents(path("a")).size(), 1u);
}

// Every family keeps its own format, and what its config.json says beside the dtype.
TEST_F(ExportFolder, ModelsWithoutASwapKeepTheFormatOfTheirSource) {
  for (const char* name : {"llama_default", "llama_linear_bias", "qwen2_yarn", "qwen3_default",
                           "mistral_window", "minicpm_long", "hybrid/group1_bias"}) {
    const std::string golden = kGolden + "/" + name;
    const Loaded first = load(golden, at::kBFloat16);
    ExportOptions options;
    options.max_shard_bytes = 100'000;
    options.source_config = read_config_json(golden);
    export_to(path("a"), first, options);
    const Loaded second = load(path("a"), at::kBFloat16);
    for (size_t i = 0; i < first.parts.size(); ++i) {
      EXPECT_TRUE(at::equal(first.parts[i].flat, second.parts[i].flat)) << name;
    }
    json before = options.source_config, after = read_config_json(path("a"));
    EXPECT_EQ(after.contains("dtype") ? after["dtype"] : after["torch_dtype"], "bfloat16") << name;
    for (const char* key : {"dtype", "torch_dtype"}) before.erase(key), after.erase(key);
    if (first.config.is_hybrid()) before["auto_map"] = after["auto_map"];  // always our code
    EXPECT_EQ(before, after) << name;
    options.source_config = read_config_json(path("a"));
    options.source_folder = path("a");
    export_to(path("b"), second, options);
    EXPECT_EQ(contents(path("a")), contents(path("b"))) << name;
    fs::remove_all(path("a"));
    fs::remove_all(path("b"));
  }
}

TEST_F(ExportFolder, WhatHoldsNothingIsWrittenInPlace) {
  const Loaded model = load(kGolden + "/hybrid/odd_length");
  fs::create_directories(path("volume/lost+found"));
  fs::create_directories(path("elsewhere"));
  fs::create_directory_symlink(path("elsewhere"), path("link"));
  fs::create_directories(path("a.tmp"));  // of somebody
  write_file_atomically(path("a.tmp/precious"), "x");
  for (const char* name : {"a", "a/", "volume", "link", "new/deep/b"}) {
    const auto folder = path(name);
    export_to(folder, model);
    EXPECT_EQ(load(folder).config.family, "minicpm_sala") << name;
  }
  EXPECT_TRUE(fs::is_symlink(path("link")) && fs::exists(path("elsewhere/config.json")));
  EXPECT_TRUE(fs::exists(path("a.tmp/precious")));
}

TEST_F(ExportFolder, WhatHoldsSomethingIsRefusedAndKept) {
  const Loaded model = load(kGolden + "/hybrid/odd_length");
  fs::create_directories(path("run/checkpoints"));
  fs::create_symlink(path("nowhere"), path("dangling"));
  write_file_atomically(path("file"), "x");
  export_to(path("other"), model, by("another run"));
  export_to(path("edited"), model);
  write_file_atomically(path("edited/config.json"), "{}");
  export_to(path("more"), model);
  write_file_atomically(path("more/notes.txt"), "x");
  export_to(path("cut"), model, by("another run"));
  fs::remove(path("cut/config.json"));
  const std::pair<const char*, const char*> cases[] = {
      {"run", "has content"},
      {"dangling", "link to a folder that is not there"},
      {"file", "is no folder"},
      {"file/below", "cannot make it: Not a directory"},
      {"other", "finished export of another run"},
      {"edited", "an export that was edited"},
      {"more", "content that no export wrote"},
      {"cut", "unfinished export of another run"},
      {"/proc/export", "cannot make it"},
  };
  for (const auto& [name, expected] : cases) {
    const std::string folder = name[0] == '/' ? name : path(name);
    const auto before = fs::is_directory(folder) && std::string(name) != "run"
                            ? contents(folder)
                            : std::map<std::string, std::string>();
    const std::string error = error_of([&] { export_to(folder, model); });
    EXPECT_EQ(error.find(folder + ": "), 0u) << error;
    EXPECT_NE(error.find(expected), error.npos) << error;
    if (!before.empty()) {
      EXPECT_EQ(contents(folder), before) << name;
    }
  }
  EXPECT_TRUE(fs::exists(path("run/checkpoints")));
}

// Killed at any moment, and killed again while it is made again.
TEST_F(ExportFolder, WhatAKilledExportLeftIsMadeAgain) {
  const Loaded model = load(kGolden + "/hybrid/odd_length");
  ExportOptions options;
  options.model_card = "# A hybrid\n";
  options.max_shard_bytes = 500'000;
  export_to(path("a"), model, options);
  const auto whole = contents(path("a"));
  std::vector<std::string> written;
  for (const auto& [name, text] : whole) {
    if (name != "sala_export.json") written.push_back(name);
  }
  for (size_t lost = 0; lost <= written.size(); ++lost) {
    for (size_t i = 0; i < lost; ++i) fs::remove(path("a/") + written[i]);
    if (lost > 0) fs::remove(path("a/config.json"));  // it comes last
    if (lost > 1) write_file_atomically(path("a/") + written[1] + ".tmp", "half");
    options.model_card = "# A hybrid, take " + std::to_string(lost) + "\n";
    export_to(path("a"), model, options);
    EXPECT_EQ(contents(path("a")).size(), whole.size());
    EXPECT_EQ(contents(path("a")).at("README.md"), options.model_card);
    EXPECT_EQ(load(path("a")).config.family, "minicpm_sala");
  }
  for (const std::string& name : written) fs::remove(path("a/") + name);
  write_file_atomically(path("a/sala_export.json"), "{\"mak");  // torn
  export_to(path("a"), model, options);
  EXPECT_EQ(contents(path("a")).size(), whole.size());
}

// A marker is input like any other: it cannot make us remove what lies elsewhere.
TEST_F(ExportFolder, AMarkerNamesOnlyFilesOfItsFolder) {
  write_file_atomically(path("precious"), "x");
  fs::create_directories(path("a"));
  write_file_atomically(path("a/sala_export.json"),
                        R"({"maker": "a test", "files": ["../precious", "..", ".", "", 3]})");
  export_to(path("a"), load(kGolden + "/hybrid/odd_length"));
  EXPECT_TRUE(fs::exists(path("precious")));
}

TEST_F(ExportFolder, CarriesTheHashesOfItsFiles) {
  ExportOptions options;
  options.model_card = "# A hybrid\n";
  export_to(path("a"), load(kGolden + "/hybrid/odd_length"), options);
  EXPECT_EQ(std::system(("cd " + path("a") + " && sha256sum --quiet -c SHA256SUMS").c_str()), 0);
  const std::string sums = read_text_file(path("a/SHA256SUMS"));
  for (const char* name : {"config.json", "model.safetensors", "README.md",
                           "configuration_minicpm_sala.py", "modeling_minicpm_sala.py"}) {
    EXPECT_NE(sums.find(std::string("  ") + name + "\n"), sums.npos) << name;
  }
}

}  // namespace
}  // namespace sala::test
