// The conventions that a program can check: length of lines and files, the comment that opens a
// file, include guards, no version numbers in names.
#include <gtest/gtest.h>

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

TEST(Sources, NamesCarryNoVersions) {
  const std::regex version("(_v[0-9]+|_(new|old|final|tmp))(_|\\.)");
  for (const std::string& file : all_sources()) {
    EXPECT_FALSE(std::regex_search(file, version)) << file;
  }
}

}  // namespace
}  // namespace sala::house
