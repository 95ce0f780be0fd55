// The README and other pages may only name what exists: every path in backticks that starts
// with one of our folders, every program under build/bin.
#include <gtest/gtest.h>

#include <regex>

#include "tests/house/source_tree.h"

namespace sala::house {
namespace {

const std::set<std::string> kFolders = {"trainer", "model",  "kernels", "data",
                                        "recipes", "launch", "tests",   ".ci"};

// A path in the text: words with slashes, up to the first character that cannot be in a path.
// `kernels/*.cu`, `run/checkpoints/<stage>` and the like are patterns, not paths.
std::vector<std::string> paths_in(const std::string& line) {
  static const std::regex code("`([^`]+)`");
  static const std::regex path("(^|[\\s(=])((\\.ci|[a-z_]+)/[A-Za-z0-9_./*<{-]*)");
  std::vector<std::string> paths;
  for (std::sregex_iterator span(line.begin(), line.end(), code), end; span != end; ++span) {
    const std::string text = (*span)[1];
    for (std::sregex_iterator hit(text.begin(), text.end(), path); hit != end; ++hit) {
      const std::string word = (*hit)[2];
      if (word.find_first_of("*<{") == std::string::npos) paths.push_back(word);
    }
  }
  return paths;
}

// Their names as CMakeLists.txt gives them: "sala-train=main" is trainer/main.cpp.
std::set<std::string> programs_built() {
  static const std::regex entry("\"(sala-[a-z]+)=([a-z_]+)\"");
  std::set<std::string> programs;
  for (const std::string& line : lines_of(kRoot / "CMakeLists.txt")) {
    for (std::sregex_iterator hit(line.begin(), line.end(), entry), end; hit != end; ++hit) {
      if (fs::exists(kRoot / "trainer" / ((*hit)[2].str() + ".cpp"))) programs.insert((*hit)[1]);
    }
  }
  return programs;
}

void expect_paths_exist(const std::string& page) {
  ASSERT_TRUE(fs::exists(kRoot / page)) << page << " is missing";
  const std::set<std::string> programs = programs_built();
  const auto lines = lines_of(kRoot / page);
  for (size_t i = 0; i < lines.size(); ++i) {
    for (const std::string& path : paths_in(lines[i])) {
      const std::string folder = path.substr(0, path.find('/'));
      if (path.rfind("build/bin/", 0) == 0) {
        EXPECT_TRUE(programs.count(fs::path(path).filename().string()))
            << page << ":" << i + 1 << " names the program " << path;
      } else if (kFolders.count(folder)) {
        EXPECT_TRUE(fs::exists(kRoot / path)) << page << ":" << i + 1 << " names " << path;
      }
    }
  }
}

TEST(Readme, PathsExist) { expect_paths_exist("README.md"); }

TEST(Readme, PathsOnTheRecipesPageExist) { expect_paths_exist("recipes/README.md"); }

TEST(Readme, PathsOnOtherPagesExist) {
  for (const char* page :
       {"trainer/bench/README.md", "trainer/folder/GGUF.md", "tests/README.md"}) {
    expect_paths_exist(page);
  }
}

TEST(Readme, PathsInTheDataFormatExist) { expect_paths_exist("data/FORMAT.md"); }

TEST(Readme, FindsPathsInALine) {
  const std::string line =
      "see `trainer/step.cpp`, `make test`, `sala-train recipes/a.yaml --check`";
  EXPECT_EQ(paths_in(line), (std::vector<std::string>{"trainer/step.cpp", "recipes/a.yaml"}));
  EXPECT_TRUE(paths_in("`kernels/*.cu` and plain trainer/x.cpp").empty());
}

}  // namespace
}  // namespace sala::house
