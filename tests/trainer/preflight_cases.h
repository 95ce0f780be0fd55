// A recipe whose source, stores and needle set are there, as small as the checks before a run need
// them: weights are a header and a hole.
#pragma once

#include <nlohmann/json.hpp>

#include "data/files/hash.h"
#include "model/weights/parts.h"
#include "tests/data/test_store.h"
#include "tests/trainer/recipe_cases.h"
#include "trainer/checks/check_command.h"
#include "trainer/folder/reader.h"

namespace sala::recipe_cases {

inline const std::string kToyConfig = R"({"model_type": "llama", "hidden_size": 64,
  "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 1000, "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": 0,
  "hidden_act": "silu"})";

inline const std::string kToyRecipe = R"(source: model
run: {folder: run, device: cpu}
model: {sparse: {block_size: 16, kernel_size: 8, kernel_stride: 4, topk: 2, window_size: 32}}
data:
  sources:
    a: {files: [a.h5]}
    b: {files: [b.h5]}
  lanes: 6
  needles: needles.json
stages:
  - align: {tokens: 10240, row_length: 64, batch_tokens: 512, data: {a: 1, b: 2}, lr: 3e-3}
  - score: {method: kl, data: {a: 1}, documents: 4, row_length: 128, recall_span: 16}
  - swap: {keep: 2}
  - distill:
      tokens: 10240
      row_length: 128
      batch_tokens: 512
      data: {a: 1, b: 1}
      lr: 2e-3
      rules: [{match: self_attn, lr_scale: 2}]
  - train: {tokens: 8K, row_length: 256, batch_tokens: 512, data: {b: 1}, lr: 1e-3, schedule: wsd}
  - evaluate:
      sources: [a, b]
      tokens: 1K
      row_length: 128
      needle_lengths: [64, 150]
      needle_source: a
  - export: {folder: out}
)";

inline void write_model(const TemporaryFolder& folder, const std::string& config) {
  folder.write("model/config.json", config);
  nlohmann::json header;
  int64_t end = 0;
  for (const Layout& layout : model_layouts(read_model_config(folder / "model"))) {
    for (const Entry& entry : layout.entries) {
      const int64_t begin = end;
      end += 2 * entry.num_elements();
      header[entry.name] = {
          {"dtype", "BF16"}, {"shape", entry.shape}, {"data_offsets", {begin, end}}};
    }
  }
  const std::string text = header.dump();
  const uint64_t size = text.size();
  const std::string path = folder.write(
      "model/model.safetensors", std::string(reinterpret_cast<const char*>(&size), 8) + text);
  std::filesystem::resize_file(path, 8 + size + static_cast<uint64_t>(end));
}

inline TestStore store_of(const std::vector<int64_t>& lengths) {
  TestStore store;
  store.tokenizer_hash = xxh3_64_hex("{}", 2);
  for (const int64_t length : lengths) {
    store.documents.emplace_back(length, 7);
    store.documents.back().back() = 0;
  }
  return store;
}

inline void write_toy(const TemporaryFolder& folder) {
  write_model(folder, kToyConfig);
  folder.write("model/tokenizer.json", "{}");
  write_store(folder / "a.h5", store_of({1, 200, 300}));
  write_store(folder / "b.h5", store_of({20, 30}));
  folder.write("needles.json",
               R"({"format": "sala-needles", "vocab_size": 1000, "tokenizer_hash": ")" +
                   xxh3_64_hex("{}", 2) + R"(", "items": [
        {"needle": [5, 6, 7, 8], "question": [5, 6], "answer": [7, 8], "text": "5 6 7 8"}]})");
}

// The recipe's files and folders lie in `folder`.
inline std::unique_ptr<Recipe> read_toy(const TemporaryFolder& folder, std::string text,
                                        const std::vector<std::string>& overrides = {}) {
  auto recipe = read_recipe(folder.write("recipe.yaml", text), overrides);
  const auto inside = [&](std::string& path) {
    if (!path.empty() && path[0] != '/') path = folder / path;
  };
  inside(recipe->source);
  inside(recipe->run.folder);
  if (!recipe->data.needles.empty()) inside(recipe->data.needles);
  if (!recipe->data.tasks.empty()) inside(recipe->data.tasks);
  for (std::string& file : recipe->data.choices) inside(file);
  for (auto& [name, source] : recipe->data.sources) {
    for (std::string& file : source.files) inside(file);
  }
  return recipe;
}

}  // namespace sala::recipe_cases
