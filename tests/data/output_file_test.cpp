// Files for results: what may be replaced, and what is refused before the work.
#include "data/files/output_file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "data/files/atomic_file.h"
#include "tests/data/test_store.h"

namespace sala {
namespace {

TEST(OutputFile, ReplacesNothingButItsOwnKind) {
  const TestFolder folder;
  const std::string path = folder / "out.json";
  const auto check = [&] {
    check_output_file(path, "evaluation", [&] { return is_json_with(path, {"evaluation"}); });
  };
  EXPECT_NO_THROW(check());  // nothing is there
  write_file_atomically(path, R"({"evaluation": {}, "folder": "x"})");
  EXPECT_NO_THROW(check());
  for (const char* other : {"", "stages: []\n", "[1, 2]", R"({"folder": "x"})", "\x89HDF"}) {
    write_file_atomically(path, other);
    expect_error(check, {path, "is there already", "no evaluation", "name another file"});
    EXPECT_EQ(read_text_file(path), other);
  }
}

TEST(OutputFile, NeedsItsFolder) {
  const TestFolder folder;
  const auto no = [] { return false; };
  const std::string path = folder / "none/out.json";
  expect_error([&] { check_output_file(path, "x", no); }, {path, "there is no folder"});
  expect_error([&] { check_output_file(folder.path(), "x", no); }, {folder.path()});
}

}  // namespace
}  // namespace sala
