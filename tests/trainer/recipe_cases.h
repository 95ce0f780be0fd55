// A recipe that is right, and folders for the files of one test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/recipe/recipe.h"

namespace sala::recipe_cases {

// Places that the table of bad recipes counts on: do not reflow.
inline const std::string kGood = R"(source: model
run: {folder: run, seed: 3}
model:
  qk_norm: drop
data:
  sources:
    web: {files: web.h5}
    books: {files: [books-0.h5, books-1.h5]}
stages:
  - align:
      tokens: 8K
      row_length: 512
      batch_tokens: 2K
      data: {web: 1}
      lr: 1e-3
  - score: {method: uniform}
  - swap: {keep: 2}
  - distill:
      tokens: 20K
      row_length: 1K
      batch_tokens: 2K
      data: {web: 1, books: 0.5}
      lr: 1e-3
      rules:
        - {match: self_attn, lr_scale: 3}
  - train:
      tokens: 8K
      row_length: 1K
      batch_tokens: 2K
      data: {books: 1}
      lr: 1e-4
      schedule: wsd
  - export: {folder: out}
)";

// A folder that goes when the test ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            ("sala_" + std::string(test->name()) + "_" + std::to_string(getpid()));
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string write(const std::string& name, const std::string& text) const {
    const std::filesystem::path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return file.string();
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::vector<std::string> shipped_recipes() {
  std::vector<std::string> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(SALA_SOURCE_DIR) + "/recipes")) {
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// `text` with the one place that says `from` saying `to`.
inline std::string edited(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(text.find(from, at + 1), std::string::npos) << "not unique: " << from;
  return text.replace(at, from.size(), to);
}

// What is wrong with a recipe's text; empty when nothing is. The folder is cut off the file's name.
inline std::string complaint(const TemporaryFolder& folder, const std::string& text,
                             const std::vector<std::string>& overrides = {}) {
  std::string message;
  try {
    message = read_recipe(folder.write("bad.yaml", text), overrides)->problems.text();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  const std::string prefix = folder / "";
  for (size_t at; (at = message.find(prefix)) != std::string::npos;) {
    message.erase(at, prefix.size());
  }
  return message;
}

}  // namespace sala::recipe_cases
