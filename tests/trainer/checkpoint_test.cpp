// Checkpoints of one process: what is saved is loaded, damage is seen and passed over, nothing that
// goes wrong costs an older checkpoint.
#include "trainer/checkpoint/checkpoints.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <set>

#include "tests/trainer/checkpoint_state.h"
#include "trainer/world.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

std::string save(Checkpoints& checkpoints, int64_t stage, int64_t step, bool boundary = false) {
  const CheckpointId id{stage, "train", step, boundary};
  return checkpoints.save(id, {{"seed", stage}},
                          [&](StateWriter& out) { fill_state(out, 100 * stage + step); });
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

TEST(Checkpoint, LoadsWhatWasSavedBitForBit) {
  const ScratchFolder run = scratch("checkpoint_bits");
  Checkpoints checkpoints(run.path, world_of_one(), 2);
  const CheckpointId id{3, "long context", 12, false};
  const nlohmann::json odd{{"nan", std::nan("")}, {"list", {1, 2.5, -INFINITY, "nan"}}};
  const std::string folder = checkpoints.save(id, {{"key", "value"}}, [&](StateWriter& out) {
    fill_state(out, 5, true);
    out.json("odd", odd);
  });
  EXPECT_EQ(fs::path(folder).filename(), "03-long_context-00000012");
  EXPECT_EQ(state_difference(folder, 5, true), "");
  const CheckpointId got = Checkpoints::id(folder);
  EXPECT_EQ(got.stage_index, 3);
  EXPECT_EQ(got.stage, "long context");
  EXPECT_EQ(got.step, 12);
  EXPECT_FALSE(got.boundary);
  EXPECT_EQ(Checkpoints::recipe(folder), nlohmann::json({{"key", "value"}}));
  const auto in = Checkpoints::open(folder);
  EXPECT_TRUE(std::isnan(in->json("odd").at("nan").get<double>()));
  EXPECT_EQ(in->json("odd").at("list"), odd.at("list"));
  EXPECT_FALSE(in->has("nothing"));
  EXPECT_FALSE(in->has_tensor("embed", "v"));
  EXPECT_EQ(in->parts(), (std::vector<std::string>{"embed", "head", "layers.0.block"}));
  EXPECT_EQ(in->layout("embed").find("embed.weight")->shape, (std::vector<int64_t>{13, 7}));
  EXPECT_TRUE(in->layout("embed").find("embed.weight")->decay);
}

TEST(Checkpoint, FillsOtherFloatingTypes) {
  const ScratchFolder run = scratch("checkpoint_types");
  Checkpoints checkpoints(run.path, world_of_one(), 2);
  const std::string folder = save(checkpoints, 0, 1);
  const Layout layout = state_layout("embed");
  at::Tensor bf16 = at::empty({layout.num_elements}, at::kBFloat16);
  Checkpoints::open(folder)->tensor("embed", "master", layout, bf16);
  EXPECT_TRUE(bits_equal(bf16, state_values(layout, 1).to(at::kBFloat16)));
}

TEST(Checkpoint, NewestIsByStageThenStep) {
  const ScratchFolder run = scratch("checkpoint_order");
  Checkpoints checkpoints(run.path, world_of_one(), 9);
  std::vector<std::string> skipped;
  EXPECT_FALSE(checkpoints.newest_valid(skipped));
  for (const auto& [stage, step] : {std::pair{0, 9}, {0, 100}, {1, 0}, {1, 2}}) {
    const std::string folder = save(checkpoints, stage, step, step == 0);
    EXPECT_EQ(checkpoints.newest_valid(skipped), folder);
  }
  EXPECT_TRUE(skipped.empty());
}

TEST(Checkpoint, LoadingNamesWhatIsAbsentOrDifferent) {
  const ScratchFolder run = scratch("checkpoint_names");
  Checkpoints checkpoints(run.path, world_of_one(), 2);
  const auto in = Checkpoints::open(save(checkpoints, 0, 1));
  const auto message = [](const auto& work) -> std::string {
    try {
      work();
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  Layout other = state_layout("embed");
  other.entries[1].shape = {7, 13};
  at::Tensor full = at::empty({other.num_elements});
  EXPECT_NE(message([&] {
              in->tensor("embed", "master", other, full);
            }).find("expected embed.weight [7,13] at 64, saved embed.weight [13,7] at 64"),
            std::string::npos);
  EXPECT_NE(message([&] { in->tensor("embed", "v", other, full); }).find("embed/v"),
            std::string::npos);
  EXPECT_NE(message([&] { in->json("cursor"); }).find("cursor"), std::string::npos);
  EXPECT_NE(message([&] { Checkpoints::open(run.path); }).find("not a checkpoint"),
            std::string::npos);
}

// Damages the checkpoint in `folder`; the message must hold `reason`.
struct Damage {
  const char* name;
  void (*apply)(const std::string& folder);
  const char* reason;
};

void flip_first_value(const std::string& file, const at::Tensor& values) {
  std::string bytes = read_all(file);
  const std::string pattern(static_cast<const char*>(values.const_data_ptr()), 64);
  const size_t at = bytes.find(pattern);
  ASSERT_NE(at, std::string::npos) << file;
  bytes[at + 17] ^= 4;
  write_all(file, bytes);
}

const Damage kDamages[] = {
    {"TornRankFile",
     [](const std::string& folder) {
       const std::string file = folder + "/rank-00000.h5";
       fs::resize_file(file, fs::file_size(file) / 2);
     },
     "rank-00000.h5: has "},
    {"TruncatedManifest",
     [](const std::string& folder) {
       const std::string file = folder + "/manifest.json";
       fs::resize_file(file, fs::file_size(file) - 100);
     },
     "manifest.json: damaged"},
    {"EmptyManifest",
     [](const std::string& folder) { fs::resize_file(folder + "/manifest.json", 0); },
     "manifest.json: damaged"},
    {"BitFlipInManifest",
     [](const std::string& folder) {
       std::string text = read_all(folder + "/manifest.json");
       text[text.find("\"seed\": 2") + 8] ^= 1;
       write_all(folder + "/manifest.json", text);
     },
     "hash differs"},
    {"BitFlipInDataset",
     [](const std::string& folder) {
       flip_first_value(folder + "/rank-00000.h5", state_values(state_layout("embed"), 2));
     },
     "dataset `embed/master` is damaged"},
    {"MissingRankFile", [](const std::string& folder) { fs::remove(folder + "/rank-00000.h5"); },
     "rank-00000.h5: No"},
    {"MissingManifest", [](const std::string& folder) { fs::remove(folder + "/manifest.json"); },
     "no manifest.json"},
};

class CheckpointDamage : public testing::TestWithParam<Damage> {};

TEST_P(CheckpointDamage, FallsBackToTheOlderAndSaysWhy) {
  const ScratchFolder run = scratch(GetParam().name);
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  const std::string older = save(checkpoints, 0, 1), newer = save(checkpoints, 0, 2);
  GetParam().apply(newer);
  std::vector<std::string> skipped;
  EXPECT_EQ(checkpoints.newest_valid(skipped), older);
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_EQ(skipped[0].rfind(newer, 0), 0u) << skipped[0];
  EXPECT_NE(skipped[0].find(GetParam().reason), std::string::npos) << skipped[0];
  EXPECT_EQ(skipped[0].find('\n'), std::string::npos);
  EXPECT_EQ(state_difference(older, 1), "");
  EXPECT_THROW(state_difference(newer, 2), std::runtime_error);

  // The run goes on from the older one and saves the same step again.
  EXPECT_EQ(save(checkpoints, 0, 2), newer);
  skipped.clear();
  EXPECT_EQ(checkpoints.newest_valid(skipped), newer);
  EXPECT_TRUE(skipped.empty());
  EXPECT_EQ(state_difference(newer, 2), "");
}

INSTANTIATE_TEST_SUITE_P(Each, CheckpointDamage, testing::ValuesIn(kDamages),
                         [](const auto& info) { return info.param.name; });

TEST(Checkpoint, ADamagedFrozenFileIsSeenAndWrittenAgain) {
  const ScratchFolder run = scratch("checkpoint_frozen_damage");
  std::vector<std::string> skipped;
  {
    Checkpoints checkpoints(run.path, world_of_one(), 3);
    save(checkpoints, 0, 1);
    const std::string frozen = run.path + "/checkpoints/frozen/";
    flip_first_value(frozen + *names_in(frozen).begin(), state_values(state_layout("head"), 77));
    EXPECT_THROW(checkpoints.newest_valid(skipped), SharedError);
    EXPECT_NE(skipped.at(0).find("is damaged"), std::string::npos) << skipped.at(0);
  }
  Checkpoints restarted(run.path, world_of_one(), 3);
  const std::string folder = save(restarted, 0, 1);
  skipped.clear();
  EXPECT_EQ(restarted.newest_valid(skipped), folder);
  EXPECT_EQ(state_difference(folder, 1), "");
}

TEST(Checkpoint, APassedOverOneIsNotReturnedToAfterItWasOvertaken) {
  const ScratchFolder run = scratch("checkpoint_overtaken");
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  const std::string a = save(checkpoints, 0, 1), b = save(checkpoints, 0, 5);
  const std::string rank_file = b + "/rank-00000.h5", away = run.path + "/away";
  fs::rename(rank_file, away);
  std::vector<std::string> skipped;
  EXPECT_EQ(checkpoints.newest_valid(skipped), a);
  const std::string c = save(checkpoints, 0, 3);
  fs::rename(away, rank_file);  // readable again, but of a run that no longer is
  skipped.clear();
  EXPECT_EQ(checkpoints.newest_valid(skipped), c);
  EXPECT_TRUE(skipped.empty());
  EXPECT_TRUE(fs::exists(rank_file));
}

TEST(Checkpoint, RetentionKeepsTheNewestAndEveryBoundary) {
  const ScratchFolder run = scratch("checkpoint_retention");
  Checkpoints checkpoints(run.path, world_of_one(), 2);
  for (int64_t stage = 0; stage < 3; ++stage) {
    for (int64_t step = 0; step < 4; ++step) save(checkpoints, stage, step, step == 0);
  }
  EXPECT_EQ(names_in(run.path + "/checkpoints"),
            (std::set<std::string>{"00-train-00000000", "01-train-00000000", "02-train-00000000",
                                   "02-train-00000002", "02-train-00000003", "frozen"}));
  EXPECT_THROW(Checkpoints(run.path, world_of_one(), 0), c10::Error);
}

TEST(Checkpoint, FrozenIsWrittenOnceAndGoesWithTheLastThatNamesIt) {
  const ScratchFolder run = scratch("checkpoint_frozen");
  const std::string frozen = run.path + "/checkpoints/frozen/";
  const Layout layout = state_layout("head");
  const auto save_frozen = [&](Checkpoints& checkpoints, int64_t step, int64_t seed) {
    return checkpoints.save({0, "train", step, false}, {}, [&](StateWriter& out) {
      out.frozen("head", "master", layout, state_values(layout, seed));
    });
  };
  Checkpoints checkpoints(run.path, world_of_one(), 1);
  save_frozen(checkpoints, 1, 7);
  ASSERT_EQ(names_in(frozen).size(), 1u);
  const std::string first = *names_in(frozen).begin();
  const auto written = fs::last_write_time(frozen + first);
  save_frozen(checkpoints, 2, 7);
  Checkpoints restarted(run.path, world_of_one(), 1);  // a new process checks the file and keeps it
  const std::string folder = save_frozen(restarted, 3, 7);
  EXPECT_EQ(names_in(frozen), std::set<std::string>{first});
  EXPECT_EQ(fs::last_write_time(frozen + first), written);
  EXPECT_EQ(names_in(folder), std::set<std::string>{"manifest.json"});  // no rank file needed
  save_frozen(restarted, 4, 8);
  ASSERT_EQ(names_in(frozen).size(), 1u);
  EXPECT_FALSE(names_in(frozen).contains(first));
}

TEST(Checkpoint, WhatInterruptedSavesLeftIsClearedAway) {
  const ScratchFolder run = scratch("checkpoint_leftovers");
  Checkpoints checkpoints(run.path, world_of_one(), 1);
  const std::string folder = run.path + "/checkpoints/";
  save(checkpoints, 0, 1);
  for (const std::string left : {"00-train-00000002.writing", "00-train-00000003"}) {
    fs::create_directories(folder + left);
    write_all(folder + left + "/rank-00000.h5", "half");
  }
  fs::create_directories(folder + "mine");
  write_all(folder + "mine/notes.txt", "not ours");
  std::vector<std::string> skipped;
  EXPECT_TRUE(checkpoints.newest_valid(skipped));
  EXPECT_EQ(skipped.size(), 3u);
  save(checkpoints, 0, 4);
  EXPECT_EQ(names_in(folder), (std::set<std::string>{"00-train-00000004", "frozen", "mine"}));
}

TEST(Checkpoint, AFailingCallerLeavesNothingBehind) {
  const ScratchFolder run = scratch("checkpoint_caller");
  Checkpoints checkpoints(run.path, world_of_one(), 1);
  const std::string older = save(checkpoints, 0, 1);
  const auto fill = [](StateWriter& out) {
    fill_state(out, 2);
    throw std::runtime_error("the stage cannot be saved now");
  };
  EXPECT_THROW(checkpoints.save({0, "train", 2, false}, {}, fill), std::runtime_error);
  const auto twice = [](StateWriter& out) {
    fill_state(out, 2);
    fill_state(out, 2);
  };
  EXPECT_THROW(checkpoints.save({0, "train", 2, false}, {}, twice), std::runtime_error);
  EXPECT_EQ(names_in(run.path + "/checkpoints"),
            (std::set<std::string>{"00-train-00000001", "frozen"}));
  EXPECT_EQ(state_difference(older, 1), "");
}

// Saves until it fails; the older checkpoint must be whole, and space that comes back must be
// enough.
std::string save_without_space(Checkpoints& checkpoints, int64_t step) {
  try {
    checkpoints.save({0, "train", step, false}, {},
                     [&](StateWriter& out) { fill_state(out, step, true); });
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(Checkpoint, AFullDiskCostsNothingThatWasThere) {
  const ScratchFolder run = scratch("checkpoint_full_disk");
  if (mount("tmpfs", run.path.c_str(), "tmpfs", 0, "size=6m") != 0) {
    GTEST_SKIP() << "needs the right to mount a small file system";
  }
  {
    Checkpoints checkpoints(run.path, world_of_one(), 3);
    const std::string older = save(checkpoints, 0, 1);
    const std::string error = save_without_space(checkpoints, 2);  // 4 fields of 4 MiB
    EXPECT_NE(error.find("left; free space"), std::string::npos) << error;
    std::vector<std::string> skipped;
    EXPECT_EQ(checkpoints.newest_valid(skipped), older);
    EXPECT_TRUE(skipped.empty()) << skipped[0];
    EXPECT_EQ(state_difference(older, 1), "");
  }
  umount(run.path.c_str());
}

TEST(Checkpoint, AFailedWriteCostsNothingThatWasThere) {
  const ScratchFolder run = scratch("checkpoint_file_limit");
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  const std::string older = save(checkpoints, 0, 1);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {1 << 12, 1 << 20, 5 << 20}) {  // fails early, in a slab, at the end
    const rlimit small{limit, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const std::string error = save_without_space(checkpoints, 2);
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_NE(error.find("rank-00000.h5"), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    std::vector<std::string> skipped;
    EXPECT_EQ(checkpoints.newest_valid(skipped), older);
    EXPECT_TRUE(skipped.empty());
    EXPECT_EQ(names_in(run.path + "/checkpoints"),
              (std::set<std::string>{"00-train-00000001", "frozen"}));
  }
  signal(SIGXFSZ, old_handler);
  EXPECT_EQ(state_difference(older, 1), "");
  EXPECT_EQ(save_without_space(checkpoints, 2), "");  // the space is back
}

// Run in a process of its own by the next test, which kills it.
TEST(CheckpointChild, DISABLED_SavesUntilItIsKilled) {
  const char* folder = std::getenv("SALA_TEST_RUN_FOLDER");
  ASSERT_NE(folder, nullptr);
  Checkpoints checkpoints(folder, world_of_one(), 2);
  std::vector<std::string> skipped;
  const auto newest = checkpoints.newest_valid(skipped);
  for (int64_t step = newest ? Checkpoints::id(*newest).step + 1 : 1;; ++step) {
    save(checkpoints, 0, step);
  }
}

TEST(Checkpoint, KilledAtAnyMomentTheNewestWholeOneIsFound) {
  const ScratchFolder run = scratch("checkpoint_killed");
  Checkpoints checkpoints(run.path, world_of_one(), 2);
  int64_t last_step = 0;
  for (int round = 0; round < 12; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      setenv("SALA_TEST_RUN_FOLDER", run.path.c_str(), 1);
      const int null = open("/dev/null", O_WRONLY);
      dup2(null, STDOUT_FILENO);
      execl("/proc/self/exe", "tests", "--gtest_filter=CheckpointChild.*",
            "--gtest_also_run_disabled_tests", nullptr);
      _exit(127);
    }
    // Until it saves; then a moment that differs from round to round.
    const auto saved_once = [&] {
      std::vector<std::string> skipped;
      const auto newest = checkpoints.newest_valid(skipped);
      return newest && Checkpoints::id(*newest).step > last_step;
    };
    for (int wait = 0; wait < 3000 && !saved_once(); ++wait) usleep(10'000);
    usleep(static_cast<useconds_t>(round * 3'571 % 40'000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << WEXITSTATUS(status);

    std::vector<std::string> skipped;
    const auto newest = checkpoints.newest_valid(skipped);
    ASSERT_TRUE(newest);
    const int64_t step = Checkpoints::id(*newest).step;
    EXPECT_GT(step, last_step);
    EXPECT_EQ(state_difference(*newest, step), "");
    last_step = step;
  }
}

}  // namespace
}  // namespace sala
