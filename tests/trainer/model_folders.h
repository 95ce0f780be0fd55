// Small models to import and export: the golden folders, loaded and written.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/files/atomic_file.h"
#include "model/weights/parts.h"
#include "trainer/folder/reader.h"

namespace sala::test {

inline const std::string kGolden = SALA_SOURCE_DIR "/tests/golden";

struct Loaded {
  ModelConfig config;
  std::vector<Layout> layouts;
  std::vector<Weights> parts;

  at::Tensor tensor(const std::string& name) const {
    for (const Weights& part : parts) {
      if (part.layout().find(name)) return part[name];
    }
    throw std::runtime_error("no tensor " + name);
  }
};

inline Loaded allocate(const ModelConfig& config, at::ScalarType dtype) {
  Loaded loaded{config, model_layouts(config), {}};
  for (const Layout& layout : loaded.layouts) loaded.parts.emplace_back(layout, dtype, at::kCPU);
  return loaded;
}

inline Loaded load(const std::string& folder, at::ScalarType dtype = at::kFloat) {
  Loaded loaded = allocate(read_model_config(folder), dtype);
  read_weights(folder, loaded.parts);
  return loaded;
}

inline std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    files[file.path().filename()] = read_text_file(file.path());
  }
  return files;
}

inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

// A folder of its own for each test, removed at its end.
class ModelFolders : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(root_); }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string path(const std::string& name) const { return root_ + "/" + name; }
  std::string copy_of(const std::string& golden) const {
    const std::string to = path("copy");
    std::filesystem::remove_all(to);
    std::filesystem::copy(kGolden + "/" + golden, to);
    return to;
  }

  const std::string root_ =
      std::filesystem::temp_directory_path() / ("model_folders_" + std::to_string(::getpid()));
};

}  // namespace sala::test
