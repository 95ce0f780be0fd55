// Room on file systems: what goes to one is added up, wherever its folders lie.
#include "trainer/checks/disk_room.h"

#include <gtest/gtest.h>

#include "tests/trainer/preflight_cases.h"
#include "trainer/checks/target_folder.h"

namespace sala {
namespace {

using namespace recipe_cases;

TEST(DiskRoom, FoldersOfOneFileSystemShareIt) {
  const TemporaryFolder folder;
  const FileSystem here = file_system_of(folder / "");
  const auto rooms = disk_rooms({{"run.folder", folder / "run", "checkpoints inside stages", 4e9},
                                 {"a", folder / "none", "nothing", 0},
                                 {"b", folder / "not/there/yet", "export", 5e9},
                                 {"c", "/proc", "words", 1e9}});
  ASSERT_EQ(rooms.size(), 2u);
  ASSERT_EQ(rooms[0].needs.size(), 2u);
  EXPECT_EQ(rooms[0].needed_bytes(), 9e9);
  EXPECT_NEAR(rooms[0].free_bytes, here.free_bytes, 0.1 * here.free_bytes);
  EXPECT_EQ(rooms[0].sum_text(), "4.0 GB checkpoints inside stages (" + folder / "run" +
                                     ") + 5.0 GB export (" + folder / "not/there/yet" + ")");
  EXPECT_EQ(rooms[1].needs.front().key, "c");
}

// Two distill stages that each keep their teacher: each has room alone, both together have not.
TEST(DiskRoom, ARecipeWhoseFoldersFitOnlyOneByOneIsRefused) {
  const TemporaryFolder folder;
  write_toy(folder);
  constexpr int64_t kBytes = 1000 * 4 + 12, kStepTokens = 512;  // of a token with 1000 ids
  const double free = file_system_of(folder / "").free_bytes;
  const auto steps = static_cast<int64_t>(0.7 * free / kBytes / kStepTokens);
  const auto distill = [&](const std::string& name) {
    return "  - distill: {name: " + name + ", tokens: " + std::to_string(steps * kStepTokens) +
           ", row_length: 128, batch_tokens: 512, data: {a: 1}, lr: 1e-3, topk: 1000, "
           "teacher_cache: " +
           folder / name + "}\n";
  };
  const std::string head = kToyRecipe.substr(0, kToyRecipe.find("  - distill:"));
  const auto checked = [&](const std::string& stages) {
    const auto recipe = read_toy(folder, head + stages);
    std::ostringstream out;
    check_recipe(*recipe, {false, "a CPU", 0, 1e11}, 1, out);
    return out.str();
  };
  const std::string one = checked(distill("first"));
  EXPECT_NE(one.find("ok: this recipe can run"), std::string::npos) << one;
  EXPECT_NE(one.find("teacher's words for first (" + folder / "first"), std::string::npos) << one;
  const std::string both = checked(distill("first") + distill("second"));
  const size_t problem = both.find("of disk, but ");
  ASSERT_NE(problem, std::string::npos) << both;
  for (const char* name : {"first", "second"}) {
    EXPECT_NE(both.find(std::string("teacher's words for ") + name, problem), std::string::npos)
        << both;
  }
  EXPECT_EQ(both.find("of disk, but ", problem + 1), std::string::npos) << both;
}

}  // namespace
}  // namespace sala
