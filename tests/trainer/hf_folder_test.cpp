// Model folders as sources: every golden folder imports whole; what is wrong with a folder is one
// line that names it, however large or hostile the folder is.
#include "trainer/folder/reader.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <tuple>

#include "data/files/atomic_file.h"
#include "data/files/safetensors.h"
#include "data/files/sha256.h"
#include "tests/trainer/model_folders.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;

class HfFolder : public ModelFolders {};

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
  EXPECT_EQ(folders, 19);
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
  const std::string error = error_of([&] { read_weights(path("bad"), model.parts); });
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
      {"JSON syntax", "llama_default", edit("\"eos", "eos"), "config.json: not valid JSON at line"},
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

// Rewrites the folder's one file with some tensors changed or under other names.
void rewrite(const std::string& folder, const std::function<std::string(const std::string&)>& name,
             const std::function<void(const std::string&, at::Tensor&)>& change) {
  const std::string file = folder + "/model.safetensors";
  std::map<std::string, at::Tensor> tensors;
  std::vector<SafetensorsSpec> specs;
  {
    const SafetensorsReader reader(file);
    for (const auto& [stored, entry] : reader.entries()) {
      at::Tensor values = reader.tensor(stored).clone();
      change(stored, values);
      const std::string renamed = name(stored);
      if (renamed.empty()) continue;
      tensors[renamed] = values;
      specs.push_back({renamed, values.scalar_type(), entry.shape});
    }
  }
  write_safetensors(file, specs, [&](const std::string& n) { return tensors.at(n); });
}

const auto kSameName = [](const std::string& name) { return name; };
const auto kSameValues = [](const std::string&, at::Tensor&) {};

TEST_F(HfFolder, ATiedModelMayKeepItsMatrixUnderEitherName) {
  const std::string folder = copy_of("llama_default");
  const Loaded before = load(folder);
  rewrite(
      folder,
      [](const std::string& name) {
        return name == "model.embed_tokens.weight" ? "lm_head.weight" : name;
      },
      kSameValues);
  const Loaded after = load(folder);
  for (size_t i = 0; i < before.parts.size(); ++i) {
    EXPECT_TRUE(at::equal(before.parts[i].flat, after.parts[i].flat));
  }
}

TEST_F(HfFolder, OtherNamesAreToldOnce) {
  const std::pair<std::function<std::string(const std::string&)>, const char*> cases[] = {
      {[](const std::string& n) { return "language_model." + n; },
       "with \"language_model.\" before"},
      {[](const std::string& n) { return "_orig_mod." + n; }, "with \"_orig_mod.\" before"},
      {[](const std::string& n) { return n.substr(6); }, "without the \"model.\""},
  };
  for (const auto& [renamed, expected] : cases) {
    const std::string folder = copy_of("llama_default");
    rewrite(folder, renamed, kSameValues);
    const std::string error = error_of([&] { load(folder); });
    EXPECT_NE(error.find(expected), error.npos) << error;
    EXPECT_LT(error.size(), 400 + folder.size());
  }
}

TEST_F(HfFolder, NanAndInfinityAreNamedWithTheirTensor) {
  for (const char* golden : {"llama_default", "qwen2_default"}) {  // BF16, F16
    const std::string folder = copy_of(golden);
    rewrite(folder, kSameName, [](const std::string& name, at::Tensor& values) {
      if (name == "model.norm.weight") values[3] = std::nan("");
      if (name != "model.layers.1.mlp.up_proj.weight") return;
      values[0][0] = -std::numeric_limits<float>::infinity();
      values[5][7] = std::numeric_limits<float>::infinity();
    });
    const std::string error = error_of([&] { load(folder); });
    for (const char* part : {"model.norm.weight (1 of 64)",
                             "model.layers.1.mlp.up_proj.weight (2 of 6144)", "fetch it again"}) {
      EXPECT_NE(error.find(part), error.npos) << error;
    }
  }
}

// One bit of a weight makes another weight: only a sum sees it.
TEST_F(HfFolder, AFlippedBitIsSeenWhereTheFolderStatesSums) {
  for (const char* place :
       {"SHA256SUMS", ".cache/huggingface/download/model.safetensors.metadata", "blob"}) {
    for (const int64_t back : {1, 1000, 20'000}) {
      const std::string folder = copy_of("llama_default");
      std::string file = folder + "/model.safetensors";
      const std::string hex = sha256_of_file(file);
      if (std::string(place) == "blob") {
        fs::rename(file, path(hex));
        fs::create_symlink(path(hex), file);
        file = path(hex);
      } else {
        fs::create_directories(fs::path(folder + "/" + place).parent_path());
        write_file_atomically(folder + "/" + place, place[0] == 'S'
                                                        ? hex + "  model.safetensors\n"
                                                        : "commit\n" + hex + "\n1700000000.5\n");
      }
      EXPECT_EQ(error_of([&] { load(folder); }), "no error");
      std::string bytes = read_text_file(file);
      bytes[bytes.size() - static_cast<size_t>(back)] ^= 1;
      write_file_atomically(file, bytes);
      const std::string error = error_of([&] { load(folder); });
      EXPECT_NE(error.find("its SHA-256 is "), error.npos) << place << ": " << error;
      EXPECT_NE(error.find(hex), error.npos) << place << ": " << error;
    }
  }
}

TEST_F(HfFolder, WhatIsNoFileIsNotWaitedFor) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    for (const char* kind : {"a FIFO", "a folder", "a device"}) {
      const std::string folder = copy_of("llama_default"), file = folder + "/" + name;
      fs::remove(file);
      if (kind[2] == 'F') {
        ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
      }
      if (kind[2] == 'f') fs::create_directory(file);
      if (kind[2] == 'd') fs::create_symlink("/dev/zero", file);
      const std::string error = error_of([&] { load(folder); });
      EXPECT_EQ(error, file + ": expected a file, found " + kind);
    }
    const std::string folder = copy_of("llama_default");
    write_file_atomically(folder + "/" + name,
                          "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n");
    const std::string error = error_of([&] { load(folder); });
    EXPECT_NE(error.find("git-lfs pointer"), error.npos) << error;
  }
}

TEST_F(HfFolder, TwoModelsInOneFolderAreNotGuessedAt) {
  const std::string folder = copy_of("llama_llama3");
  fs::copy(kGolden + "/llama_default/model.safetensors", folder);
  const std::string error = error_of([&] { load(folder); });
  EXPECT_NE(error.find("does not name model.safetensors, which is there too"), error.npos) << error;
}

// Sizes that no folder has end at once, in a line that a terminal holds.
TEST_F(HfFolder, HostileSizesAreRefused) {
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  const auto config = [](const std::string& key, const std::string& value) {
    return "{\"model_type\": \"llama\", \"" + key + "\": " + value + "}";
  };
  const std::string huge(1'000'000, 'x');
  std::string index = "{\"weight_map\": {";
  for (int i = 0; i < 100'000; ++i) {
    index +=
        (i > 0 ? "," : "") + ("\"t" + std::to_string(i)) + "\": \"s" + std::to_string(i) + "\"";
  }
  index += "}}";
  uint64_t header_bytes = deep.size();
  std::string header(reinterpret_cast<const char*>(&header_bytes), 8);
  const std::tuple<const char*, std::string, const char*> cases[] = {
      {"config.json", config("hidden_size", deep), "inside each other"},
      {"config.json", config("unknown_key", deep), "inside each other"},
      {"config.json", config("num_hidden_layers", "[[[1]]]"), "got a list"},
      {"config.json", "{\"model_type\": \"" + huge + "\"}", "known: llama"},
      {"config.json", "{\"model_type\": 1e999}", "not valid JSON"},
      {"model.safetensors.index.json", deep, "inside each other"},
      {"model.safetensors.index.json", index, "s1, s10, s100, s1000, s10000"},
      {"model.safetensors", header + deep, "nested deeper"},
  };
  for (const auto& [file, text, expected] : cases) {
    const std::string folder = copy_of("llama_default");
    if (std::string(file).ends_with("index.json")) fs::remove(folder + "/model.safetensors");
    write_file_atomically(folder + "/" + file, text);
    const std::string error = error_of([&] { load(folder); });
    EXPECT_NE(error.find(expected), error.npos) << error;
    EXPECT_LT(error.size(), 700u + folder.size()) << error;
    EXPECT_EQ(error.find('\n'), error.npos) << error;
  }
}

}  // namespace
}  // namespace sala::test
