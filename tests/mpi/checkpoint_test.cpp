// Checkpoints of several ranks: what any number of ranks saved any number loads; one rank's error
// is everybody's, and costs nothing.
#include "trainer/checkpoint/checkpoints.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "tests/mpi/shared_folder.h"
#include "tests/mpi/test_world.h"
#include "tests/trainer/checkpoint_state.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

std::string save(Checkpoints& checkpoints, int64_t step, bool large = false) {
  return checkpoints.save({1, "distill", step, false}, {},
                          [&](StateWriter& out) { fill_state(out, step, large); });
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Run by the next test in a world of one rank: checks step 1 and saves step 2.
TEST(CheckpointOfOneRank, DISABLED_LoadsAndSaves) {
  ASSERT_EQ(test_world().size(), 1);
  Checkpoints checkpoints(std::getenv("SALA_TEST_RUN_FOLDER"), test_world(), 3);
  std::vector<std::string> skipped;
  const auto newest = checkpoints.newest_valid(skipped);
  ASSERT_TRUE(newest);
  EXPECT_EQ(Checkpoints::id(*newest).step, 1);
  EXPECT_EQ(state_difference(*newest, 1, true), "");
  save(checkpoints, 2, true);
}

int run_alone(const std::string& run_folder) {
  const pid_t child = fork();
  if (child == 0) {
    const std::string folder = "SALA_TEST_RUN_FOLDER=" + run_folder;
    // A bare environment: no launcher, so a world of one.
    const char* const environment[] = {folder.c_str(), "OMP_NUM_THREADS=1", nullptr};
    const char* const arguments[] = {"tests_mpi", "--gtest_filter=CheckpointOfOneRank.*",
                                     "--gtest_also_run_disabled_tests", nullptr};
    execve("/proc/self/exe", const_cast<char* const*>(arguments),
           const_cast<char* const*>(environment));
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(CheckpointRanks, AnyNumberLoadsWhatAnyNumberSaved) {
  World& world = test_world();
  const SharedFolder run("elastic");
  Checkpoints checkpoints(run.path, world, 3);
  const std::string first = save(checkpoints, 1, true);
  EXPECT_EQ(state_difference(first, 1, true), "");
  for (int r = 0; r < world.size(); ++r) {
    EXPECT_TRUE(fs::exists(first + "/rank-0000" + std::to_string(r) + ".h5"));
  }
  const int64_t code = world.rank() == 0 ? run_alone(run.path) : 0;
  ASSERT_FALSE(world.any(code != 0));
  std::vector<std::string> skipped;
  const auto second = checkpoints.newest_valid(skipped);
  ASSERT_TRUE(second);
  EXPECT_TRUE(skipped.empty());
  EXPECT_EQ(Checkpoints::id(*second).step, 2);
  EXPECT_EQ(state_difference(*second, 2, true), "");
  // The frozen tensor's file does not depend on the number of ranks: still one.
  EXPECT_EQ(std::distance(fs::directory_iterator(run.path + "/checkpoints/frozen"), {}), 1);
}

TEST(CheckpointRanks, DamageToOneRanksFileIsSeenByAll) {
  World& world = test_world();
  const SharedFolder run("damage");
  Checkpoints checkpoints(run.path, world, 3);
  const std::string older = save(checkpoints, 1), newer = save(checkpoints, 2);
  const std::string file = newer + "/rank-0000" + std::to_string(world.size() - 1) + ".h5";
  if (world.rank() == 0) {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    const Layout layout = state_layout("embed");
    const at::Tensor values = state_values(layout, 2);
    const int64_t begin = layout.num_elements * (world.size() - 1) / world.size();
    std::string text{std::istreambuf_iterator<char>(bytes), {}};
    const size_t at = text.find(
        std::string(reinterpret_cast<const char*>(values.const_data_ptr<float>() + begin), 32));
    ASSERT_NE(at, std::string::npos);
    bytes.seekp(static_cast<std::streamoff>(at + 5));
    bytes.put(static_cast<char>(text[at + 5] ^ 1));
  }
  world.barrier();
  std::vector<std::string> skipped;
  EXPECT_EQ(checkpoints.newest_valid(skipped), older);
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_EQ(skipped[0].rfind(file, 0), 0u) << skipped[0];
}

// Not every rank looks at every file.
TEST(CheckpointRanks, AFileOfAnotherSizeIsSeenWhicheverItIs) {
  World& world = test_world();
  const SharedFolder run("truncated");
  Checkpoints checkpoints(run.path, world, 10);
  const std::string older = save(checkpoints, 1);
  for (int r = 0; r < world.size(); ++r) {
    const std::string newer = save(checkpoints, 2 + r);
    const std::string file = newer + "/rank-0000" + std::to_string(r) + ".h5";
    if (world.rank() == 0) fs::resize_file(file, fs::file_size(file) + 1);
    world.barrier();
    std::vector<std::string> skipped;
    EXPECT_EQ(checkpoints.newest_valid(skipped), older);
    ASSERT_EQ(static_cast<int>(skipped.size()), r + 1);
    EXPECT_EQ(skipped[0].rfind(file + ": has ", 0), 0u) << skipped[0];
  }
}

TEST(CheckpointRanks, ARankThatCannotWriteFailsTheSaveOnAllAndIsNamed) {
  World& world = test_world();
  const SharedFolder run("refused");
  Checkpoints checkpoints(run.path, world, 3);
  const std::string older = save(checkpoints, 1);
  const int last = world.size() - 1;
  const std::string name = "rank-0000" + std::to_string(last) + ".h5";
  const std::string error = error_of([&] {
    checkpoints.save({1, "distill", 2, false}, {}, [&](StateWriter& out) {
      // A folder where the file is to be made.
      const std::string writing = run.path + "/checkpoints/01-distill-00000002.writing/";
      if (world.rank() == last) fs::create_directories(writing + name + ".tmp");
      fill_state(out, 2);
    });
  });
  EXPECT_NE(error.find(name), std::string::npos) << error;
  if (world.size() > 1) {
    EXPECT_NE(error.find("rank " + std::to_string(last)), std::string::npos) << error;
  }
  std::vector<std::string> skipped;
  EXPECT_EQ(checkpoints.newest_valid(skipped), older);
  EXPECT_TRUE(skipped.empty());
  EXPECT_EQ(save(checkpoints, 2), run.path + "/checkpoints/01-distill-00000002");
}

TEST(CheckpointRanks, ACallerThatFailsOnOneRankFailsOnAll) {
  World& world = test_world();
  const SharedFolder run("caller");
  Checkpoints checkpoints(run.path, world, 3);
  const std::string error = error_of([&] {
    checkpoints.save({1, "distill", 2, false}, {}, [&](StateWriter& out) {
      fill_state(out, 2);
      if (world.rank() == world.size() - 1) throw std::runtime_error("nothing to save here");
    });
  });
  EXPECT_NE(error.find("nothing to save here"), std::string::npos) << error;
  std::vector<std::string> skipped;
  EXPECT_FALSE(checkpoints.newest_valid(skipped));
  EXPECT_TRUE(skipped.empty());
}

TEST(CheckpointRanks, RanksThatSaveDifferentTensorsAreAnError) {
  World& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "one rank agrees with itself";
  const SharedFolder run("different");
  Checkpoints checkpoints(run.path, world, 3);
  const Layout layout = state_layout("embed");
  const std::string error = error_of([&] {
    checkpoints.save({1, "distill", 2, false}, {}, [&](StateWriter& out) {
      out.tensor("embed", world.rank() == 0 ? "m" : "v", layout, state_values(layout, 1));
    });
  });
  EXPECT_NE(error.find("rank 0 saved embed/m"), std::string::npos) << error;
}

}  // namespace
}  // namespace sala
