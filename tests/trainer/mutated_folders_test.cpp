// Model folders with damage anywhere: each is read, or refused in one line that names it. Nothing
// crashes, hangs or takes the memory that a damaged number asks for.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "data/files/atomic_file.h"
#include "model/forward.h"
#include "model/generate.h"
#include "tests/trainer/model_folders.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;

class MutatedFolders : public ModelFolders {};

// What stands where a value stood.
const char* const kValues[] = {"0",        "-1",    "1",    "3",           "9223372036854775807",
                               "1e400",    "1e308", "null", "true",        "1099511627776",
                               "\"\"",     "[]",    "{}",   "[[[[]]]]",    "18446744073709551615",
                               "\"yarn\"", "0.5",   "1e-9", "\"\\u0000\"", "10000"};

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  size_t below(size_t count) { return count == 0 ? 0 : random_() % count; }

  std::string mutate(std::string text) {
    const size_t at = below(text.size()), length = 1 + below(12);
    switch (below(6)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(random_());
        return text;
      case 1:
        return text.erase(at, length);
      case 2:
        return text.insert(at, text.substr(below(text.size()), length));
      case 3:
        return text.substr(0, at);
      default:
        return replace_value(text);
    }
  }

 private:
  // In JSON: what follows one of the colons, up to the next comma or brace.
  std::string replace_value(std::string text) {
    const size_t colon = text.find(':', below(std::min<size_t>(text.size(), 4000)));
    if (colon == text.npos) return text;
    const size_t end = text.find_first_of(",}", colon);
    if (end == text.npos) return text;
    return text.replace(colon + 1, end - colon - 1, kValues[below(std::size(kValues))]);
  }

  std::mt19937_64 random_;
};

// As the programs do: nothing is allocated for weights that are not there.
void use(const std::string& folder) {
  const ModelConfig config = read_model_config(folder);
  check_weights(folder, model_layouts(config));
  const Model model(config);
  HeldWeights weights(model.layouts(), at::kFloat, at::kCPU);
  read_weights(folder, weights.parts());
  const Batch batch = single_document({1, 2, 3, 4, 5, 6, 7}, 0, at::kCPU);
  logits(model, weights, hidden(model, weights, model.env(batch, false)));
}

TEST_F(MutatedFolders, AreReadOrRefusedInOneLine) {
  const char* more = std::getenv("SALA_MUTATIONS");
  const int count = more ? std::atoi(more) : 400;
  const char* const goldens[] = {"llama_default", "qwen2_yarn", "minicpm_long", "hybrid/odd_length",
                                 "llama_longrope"};
  Mutator mutator(5);
  int refused = 0;
  for (int i = 0; i < count; ++i) {
    const std::string folder = copy_of(goldens[i % std::size(goldens)]);
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename();
      if (name == "config.json") files.insert(files.end(), 3, name);  // most there is to get wrong
      if (name.find("safetensors") != name.npos) files.push_back(name);
    }
    std::sort(files.begin(), files.end());
    const std::string name = files[mutator.below(files.size())], file = folder + "/" + name;
    const std::string before = read_text_file(file);
    write_file_atomically(file, mutator.mutate(before));
    try {
      use(folder);
    } catch (const c10::Error& error) {
      ADD_FAILURE() << i << ", " << name << ": " << error.what_without_backtrace();
    } catch (const std::exception& error) {
      const std::string what = error.what();
      ++refused;
      EXPECT_EQ(what.find(folder), 0u) << i << ", " << name << ": " << what;
      EXPECT_EQ(what.find('\n'), what.npos) << i << ", " << name << ": " << what;
      EXPECT_LT(what.size(), 2000u) << i << ", " << name;
    }
  }
  EXPECT_GT(refused, count / 3);
}

}  // namespace
}  // namespace sala::test
