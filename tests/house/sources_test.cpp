// The conventions that a program can check: length of lines and files, the comment that opens a
// file, include guards, one name for one type, no version numbers in names.
#include <gtest/gtest.h>

#include <map>
#include <regex>

#include "tests/house/source_tree.h"

namespace sala::house {
namespace {

constexpr size_t kMaxColumns = 100;
constexpr size_t kMaxLines = 500;

std::vector<std::string> all_sources() {
  std::vector<std::string> all;
  for (const std::string folder : {"kernels", "data", "model", "trainer", "tests"}) {
    const auto sources = sources_in(folder);
    all.insert(all.end(), sources.begin(), sources.end());
  }
  return all;
}

// Characters, not bytes: UTF-8 continuation bytes do not count.
size_t num_columns(const std::string& line) {
  return std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

TEST(Sources, LinesFitInOneHundredColumns) {
  for (const std::string& file : all_sources()) {
    const auto lines = lines_of(kRoot / file);
    for (size_t i = 0; i < lines.size(); ++i) {
      EXPECT_LE(num_columns(lines[i]), kMaxColumns) << file << ":" << i + 1;
    }
  }
}

TEST(Sources, FilesStaySmall) {
  for (const std::string& file : all_sources()) {
    EXPECT_LE(lines_of(kRoot / file).size(), kMaxLines) << file << " holds more than one idea";
  }
}

TEST(Sources, FilesOpenByTellingWhatTheyAre) {
  for (const std::string& file : all_sources()) {
    const auto lines = lines_of(kRoot / file);
    ASSERT_FALSE(lines.empty()) << file << " is empty";
    EXPECT_EQ(lines[0].rfind("// ", 0), 0u) << file << " does not open with a comment";
  }
}

TEST(Sources, HeadersAreGuarded) {
  for (const std::string& file : all_sources()) {
    if (!file.ends_with(".h") && !file.ends_with(".cuh")) continue;
    const auto lines = lines_of(kRoot / file);
    EXPECT_TRUE(std::count(lines.begin(), lines.end(), "#pragma once") == 1) << file;
  }
}

// Two types of one name in a program are undefined behaviour that no compiler or linker reports:
// only one of their std::vectors is kept.
TEST(Sources, TypesHaveNamesOfTheirOwn) {
  const std::regex opens(R"(namespace ?([\w:]*) \{)");
  const std::regex defines(R"((?:struct|class|union|enum class) (\w+)(?: final)?(?: : .*)? \{.*)");
  std::map<std::string, std::string> found;  // name to file
  for (const std::string& file : all_sources()) {
    if (file.starts_with("tests/")) continue;
    std::string space;
    bool unnamed = false;
    for (const std::string& line : lines_of(kRoot / file)) {
      std::smatch match;
      if (std::regex_match(line, match, opens)) {
        unnamed = match.str(1).empty();
        if (!unnamed) space = match.str(1);
      } else if (line == "}  // namespace") {
        unnamed = false;
      } else if (!unnamed && std::regex_match(line, match, defines)) {
        const auto [place, is_new] = found.emplace(space + "::" + match.str(1), file);
        EXPECT_TRUE(is_new) << match.str(1) << ": " << place->second << " and " << file;
      }
    }
  }
  EXPECT_GT(found.size(), 300u);
}

TEST(Sources, NamesCarryNoVersions) {
  const std::regex version("(_v[0-9]+|_(new|old|final|tmp))(_|\\.)");
  for (const std::string& file : all_sources()) {
    EXPECT_FALSE(std::regex_search(file, version)) << file;
  }
}

}  // namespace
}  // namespace sala::house
