// Model folders: every golden folder imports whole; what is wrong with a folder is one line that
// names it; export → import → export is the same bytes.
#include "trainer/hf_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "data/atomic_file.h"
#include "data/safetensors.h"
#include "model/families.h"
#include "model/layouts.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kGolden = SALA_SOURCE_DIR "/tests/golden";

struct Loaded {
  ModelConfig config;
  std::vector<Layout> layouts;
  std::vector<Weights> parts;

  std::vector<Weights*> pointers() {
    std::vector<Weights*> list;
    for (Weights& part : parts) list.push_back(&part);
    return list;
  }
  at::Tensor tensor(const std::string& name) const {
    for (const Weights& part : parts) {
      if (part.layout().find(name)) return part[name];
    }
    throw std::runtime_error("no tensor " + name);
  }
};

Loaded allocate(const ModelConfig& config, at::ScalarType dtype) {
  Loaded loaded{config, model_layouts(config), {}};
  for (const Layout& layout : loaded.layouts) loaded.parts.emplace_back(layout, dtype, at::kCPU);
  return loaded;
}

Loaded load(const std::string& folder, at::ScalarType dtype = at::kFloat) {
  Loaded loaded = allocate(read_model_config(folder), dtype);
  read_weights(folder, loaded.pointers());
  return loaded;
}

std::vector<std::string> export_to(const std::string& folder, const Loaded& model,
                                   ExportOptions options = {}) {
  options.folder = folder;
  return export_hybrid(
      model.config, model.layouts, [&](const std::string& name) { return model.tensor(name); },
      options);
}

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& file : fs::directory_iterator(folder)) {
    files[file.path().filename()] = read_text_file(file.path());
  }
  return files;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

class HfFolder : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(root_); }
  void TearDown() override { fs::remove_all(root_); }
  std::string path(const std::string& name) const { return root_ + "/" + name; }
  std::string copy_of(const std::string& golden) {
    const std::string to = path("copy");
    fs::remove_all(to);
    fs::copy(kGolden + "/" + golden, to);
    return to;
  }

  const std::string root_ =
      fs::temp_directory_path() / ("hf_folder_test_" + std::to_string(::getpid()));
};

TEST_F(HfFolder, EveryGoldenFolderImportsWhole) {
  int folders = 0;
  for (const std::string& root : {kGolden, kGolden + "/hybrid"}) {
    for (const auto& folder : fs::directory_iterator(root)) {
      if (!fs::exists(folder.path() / "config.json")) continue;
      const Loaded model = load(folder.path());
      for (const Weights& part : model.parts) {
        for (size_t i = 0; i < part.views().size(); ++i) {
          EXPECT_GT(part.views()[i].abs().sum().item<float>(), 0) << part.layout().entries[i].name;
        }
      }
      ++folders;
    }
  }
  EXPECT_EQ(folders, 18);
}

TEST_F(HfFolder, ValuesAreTheFilesValuesInEveryDtype) {
  const std::string folder = kGolden + "/qwen2_default";  // stored as F16
  const SafetensorsReader file(folder + "/model.safetensors");
  const std::string name = "model.layers.1.self_attn.k_proj.bias";
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    EXPECT_TRUE(at::equal(load(folder, dtype).tensor(name), file.tensor(name).to(dtype)));
  }
}

TEST_F(HfFolder, MissingUnexpectedMisshapenAndUnreadableComeInOneError) {
  ModelConfig config = read_model_config(kGolden + "/llama_default");
  Loaded model = allocate(config, at::kFloat);
  const SafetensorsReader good(kGolden + "/llama_default/model.safetensors");
  std::vector<SafetensorsSpec> specs;
  for (const auto& [name, entry] : good.entries()) {
    if (name == "model.norm.weight") continue;
    specs.push_back({name, at::kFloat, entry.shape});
    if (name == "model.layers.0.input_layernorm.weight") specs.back().dtype = at::kLong;
    if (name == "model.layers.1.mlp.up_proj.weight") specs.back().shape = {64, 96};
  }
  specs.push_back({"model.layers.2.mlp.up_proj.weight", at::kFloat, {2}});
  fs::create_directories(path("bad"));
  write_safetensors(path("bad/model.safetensors"), specs, [&](const std::string& name) {
    for (const SafetensorsSpec& s : specs) {
      if (s.name == name) return at::zeros(s.shape);
    }
    return at::Tensor();
  });
  const std::string error = error_of([&] { read_weights(path("bad"), model.pointers()); });
  for (const char* part : {"missing tensors: model.norm.weight;",
                           "unexpected tensors: model.layers.2.mlp.up_proj.weight;",
                           "model.layers.1.mlp.up_proj.weight expected [96, 64], got [64, 96];",
                           "model.layers.0.input_layernorm.weight is I64"}) {
    EXPECT_NE(error.find(part), error.npos) << error;
  }
  EXPECT_EQ(error.find('\n'), error.npos);
  EXPECT_EQ(model.parts[0].flat.abs().sum().item<float>(), 0);  // nothing was copied
}

TEST_F(HfFolder, HarmlessExtrasAreSkippedAnUntiedHeadIsNot) {
  const std::string folder = copy_of("llama_default");
  const std::string file = folder + "/model.safetensors";
  const Loaded model = load(folder);
  for (bool equal : {true, false}) {
    std::vector<SafetensorsSpec> specs{
        {"lm_head.weight", at::kFloat, {128, 64}},
        {"model.layers.0.self_attn.rotary_emb.inv_freq", at::kFloat, {4}}};
    for (const Layout& layout : model.layouts) {
      for (const Entry& entry : layout.entries)
        specs.push_back({entry.name, at::kFloat, entry.shape});
    }
    write_safetensors(file, specs, [&](const std::string& name) -> at::Tensor {
      if (name == "lm_head.weight")
        return model.tensor("model.embed_tokens.weight") + (equal ? 0 : 1);
      return name.find("inv_freq") != name.npos ? at::ones({4}) : model.tensor(name);
    });
    const std::string error = error_of([&] { load(folder); });
    const char* expected =
        equal ? "no error" : "unexpected tensors: lm_head.weight (config.json ties";
    EXPECT_NE(error.find(expected), error.npos) << error;
  }
}

struct BadFolder {
  const char* what;
  const char* golden;
  std::function<void(const std::string&)> spoil;
  const char* expected;
};

TEST_F(HfFolder, BadFoldersAreRefusedInOneLine) {
  const auto edit = [](const char* from, const char* to) {
    return [=](const std::string& folder) {
      std::string text = read_text_file(folder + "/config.json");
      text.replace(text.find(from), std::strlen(from), to);
      write_file_atomically(folder + "/config.json", text);
    };
  };
  const auto resize = [](const char* file, int64_t change) {
    return [=](const std::string& folder) {
      const std::string name = folder + "/" + file;
      fs::resize_file(name,
                      static_cast<uintmax_t>(static_cast<int64_t>(fs::file_size(name)) + change));
    };
  };
  const auto remove = [](const char* file) {
    return [=](const std::string& folder) { fs::remove(folder + "/" + file); };
  };
  const auto write = [](const char* file, const char* text) {
    return [=](const std::string& folder) { write_file_atomically(folder + "/" + file, text); };
  };
  const char* index = "model.safetensors.index.json";
  const char* shard = "model-00002-of-00004.safetensors";
  const BadFolder cases[] = {
      {"no config", "llama_default", remove("config.json"), "it has no config.json"},
      {"JSON syntax", "llama_default", edit("\"eos", "eos"),
       "config.json: not valid JSON: parse error at line"},
      {"no model", "llama_default", remove("model.safetensors"), "expected model.safetensors or"},
      {"old weights", "llama_default",
       [](const std::string& f) { fs::rename(f + "/model.safetensors", f + "/pytorch_model.bin"); },
       "safe_serialization=True"},
      {"truncated", "llama_default", resize("model.safetensors", -100), "(truncated)"},
      {"header only", "llama_default",
       [](const std::string& f) { fs::resize_file(f + "/model.safetensors", 20); },
       "does not fit the 20 bytes"},
      {"grown", "llama_default", resize("model.safetensors", 3), "bytes follow the last tensor"},
      {"shape", "llama_default", edit("\"intermediate_size\": 96", "\"intermediate_size\": 80"),
       "down_proj.weight expected [64, 80], got [64, 96]"},
      {"layers", "llama_default", edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
       "missing tensors: model.layers.2."},
      {"untied", "llama_default",
       edit("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false"),
       "missing tensors: lm_head.weight"},
      {"family", "llama_default", edit("\"model_type\": \"llama\"", "\"model_type\": \"gpt2\""),
       "known: llama"},
      {"heads", "llama_default", edit("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4"),
       "multiple of"},
      {"absent shard", "llama_llama3", remove(shard),
       "names files that are absent: model-00002-of-00004"},
      {"torn shard", "llama_llama3", resize(shard, -1),
       "model-00002-of-00004.safetensors: at byte"},
      {"torn index", "llama_llama3", resize(index, -9), "index.json: not valid JSON"},
      {"empty index", "llama_llama3", write(index, "{}"), "weight_map"},
      {"outside", "llama_llama3", write(index, "{\"weight_map\": {\"a\": \"../x\"}}"),
       "expected a file of this folder"},
      {"wrong index", "llama_llama3",
       write(index,
             "{\"weight_map\": {\"model.norm.weight\": \"model-00002-of-00004.safetensors\"}}"),
       "it does not"},
  };
  for (const BadFolder& bad : cases) {
    const std::string folder = copy_of(bad.golden);
    bad.spoil(folder);
    const std::string error = error_of([&] { load(folder); });
    EXPECT_NE(error.find(bad.expected), error.npos) << bad.what << ": " << error;
    EXPECT_EQ(error.find(folder), 0u) << bad.what << ": " << error;
    EXPECT_EQ(error.find('\n'), error.npos) << bad.what << ": " << error;
  }
  EXPECT_NE(error_of([&] { load(path("nowhere")); }).find("there is none"), std::string::npos);
}

TEST_F(HfFolder, ExportImportExportIsByteIdentical) {
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
    options.tokenizer_folder = path("a");
    export_to(path("b"), second, options);
    EXPECT_EQ(contents(path("a")), contents(path("b"))) << name;
    EXPECT_EQ(contents(path("a")).count("model.safetensors.index.json"), 1u) << name;
    fs::remove_all(path("a"));
    fs::remove_all(path("b"));
  }
}

TEST_F(HfFolder, AnExportKeepsTheGoldenTensors) {
  const std::string golden = kGolden + "/hybrid/group2";
  export_to(path("a"), load(golden, at::kBFloat16));
  // Ours sorts and lays out as the reference library did: the same file.
  EXPECT_EQ(read_text_file(path("a/model.safetensors")),
            read_text_file(golden + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(path("a/model.safetensors.index.json")));
}

TEST_F(HfFolder, TokenizerFilesTravel) {
  fs::create_directories(path("tokenizer"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json", "unrelated.txt"}) {
    write_file_atomically(path("tokenizer/") + name, std::string("content of ") + name);
  }
  ExportOptions options;
  options.tokenizer_folder = path("tokenizer");
  export_to(path("a"), load(kGolden + "/hybrid/group2"), options);
  const auto files = contents(path("a"));
  EXPECT_EQ(files.at("tokenizer.json"), "content of tokenizer.json");
  EXPECT_EQ(files.at("generation_config.json"), "content of generation_config.json");
  EXPECT_EQ(files.count("unrelated.txt"), 0u);
  EXPECT_EQ(files.count("README.md"), 0u);
}

TEST_F(HfFolder, ExportSaysWhoLoadsIt) {
  const auto lines = export_to(path("a"), load(kGolden + "/hybrid/group1_bias"));
  ASSERT_GE(lines.size(), 2u);
  EXPECT_EQ(lines[0], "transformers (official modelling code, trust_remote_code) loads it");
  EXPECT_NE(lines[1].find("SGLang does not load it: attention biases"), std::string::npos)
      << lines[1];
}

TEST_F(HfFolder, ARefusedOrFailedExportLeavesNothing) {
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
  options.tokenizer_folder = path("nowhere");
  EXPECT_NE(error_of([&] { export_to(path("a"), good, options); }).find("tokenizer"),
            std::string::npos);
  EXPECT_TRUE(fs::is_empty(root_));
  fs::create_directories(path("a"));
  write_file_atomically(path("a/precious"), "x");
  EXPECT_NE(error_of([&] { export_to(path("a"), good); }).find("this one has content"),
            std::string::npos);
  EXPECT_EQ(contents(path("a")).size(), 1u);
}

TEST_F(HfFolder, AnUnfinishedExportIsReplaced) {
  fs::create_directories(path("a.tmp"));
  write_file_atomically(path("a.tmp/half"), "x");
  fs::create_directories(path("a"));  // empty: allowed
  export_to(path("a"), load(kGolden + "/hybrid/odd_length"));
  EXPECT_FALSE(fs::exists(path("a.tmp")));
  EXPECT_FALSE(fs::exists(path("a/half")));
  EXPECT_EQ(load(path("a")).config.family, "minicpm_sala");
}

}  // namespace
}  // namespace sala
