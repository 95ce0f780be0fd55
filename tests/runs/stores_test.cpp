// What whole runs do with their token stores: verify them once, share the work, refuse copies that
// differ, go on where a step has nothing to predict.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "tests/data/test_store.h"
#include "tests/faults/failing_calls.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

const char* kAlignStage =
    "  - align: {tokens: 1K, row_length: 64, batch_tokens: 512, data: {a: 1, b: 1}, lr: 1e-3}\n"
    "  - score: {method: uniform}\n"
    "  - swap: {keep: 2}\n";

// One row a step, so that whole documents can lie in the steps between masks.
const char* kTrainStage =
    "  - train: {tokens: 2K, row_length: 64, batch_tokens: 64, data: {b: 1}, lr: 1e-3, "
    "max_skips: 0}\n";

const char* kLongTrain =
    "  - train: {tokens: 80K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-3}\n";

// Store b of a toy run again, as one whose documents count where `counts` says.
void write_masked_store(const ToyRun& toy, const std::function<bool(std::int64_t)>& counts) {
  TestStore store = numbered_documents(40, 200, 5, 96);
  store.tokenizer_hash = xxh3_64_hex("{}", 2);
  for (size_t d = 0; d < store.documents.size(); ++d) {
    store.masks.emplace_back(store.documents[d].size(), counts(static_cast<std::int64_t>(d)));
  }
  write_store(toy.folder() + "/b.h5", store);
}

// A wrong byte behind the same size and times: only a full check can find it.
void spoil_silently(const std::string& store) {
  const auto time = fs::last_write_time(store);
  {
    std::fstream file(store, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(12000);
    file.write("\1\0\1\0", 4);
  }
  fs::last_write_time(store, time);
}

std::string said_since(const std::string& log, size_t from) { return log.substr(from); }

}  // namespace

TEST(Stores, AreVerifiedOnceAndAgainOnRequest) {
  const ToyRun toy({.stages = kAlignStage, .save_every = 0});
  const std::string reads = "read as a whole";
  ASSERT_EQ(toy.run("run", 2), 0) << toy.log("run");
  EXPECT_NE(toy.log("run").find("2 of 2 are " + reads), std::string::npos) << toy.log("run");
  size_t before = toy.log("run").size();
  const std::string killed = toy.run_folder("run") + "/stores/0123456789abcdef.offsets.77.tmp";
  std::ofstream(killed) << "half";
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  EXPECT_FALSE(fs::exists(killed));
  EXPECT_EQ(said_since(toy.log("run"), before).find(reads), std::string::npos) << toy.log("run");

  spoil_silently(toy.folder() + "/a.h5");
  before = toy.log("run").size();
  EXPECT_NE(toy.run("run", 1, "--verify-data"), 0);
  EXPECT_NE(said_since(toy.log("run"), before).find("a.h5: checksum mismatch"), std::string::npos)
      << toy.log("run");
  // An export reads no data: the damage and an absent store do not matter to it.
  fs::remove(toy.folder() + "/b.h5");
  EXPECT_EQ(toy.run("run", 1, "--export " + toy.folder() + "/export"), 0) << toy.log("run");
}

TEST(Stores, AreVerifiedForAModelByItself) {
  const ToyRun toy({.stages = std::string(kAlignStage) +
                              "  - evaluate: {sources: [b], tokens: 1K, row_length: 64}\n"});
  const std::string alone =
      "--evaluate " + toy.folder() + "/source --out " + toy.folder() + "/out.json";
  ASSERT_EQ(toy.run("anew", 2, alone), 0) << toy.log("anew");
  EXPECT_NE(toy.log("anew").find("1 of 1 are read as a whole"), std::string::npos)
      << toy.log("anew");
  EXPECT_FALSE(fs::exists(toy.run_folder("anew")));
  // What a run has verified is known, and stays as it is.
  ASSERT_EQ(toy.run("run", 1), 0) << toy.log("run");
  spoil_silently(toy.folder() + "/b.h5");
  size_t before = toy.log("run").size();
  EXPECT_EQ(toy.run("run", 1, alone), 0) << toy.log("run");
  EXPECT_EQ(said_since(toy.log("run"), before).find("read as a whole"), std::string::npos);
  before = toy.log("run").size();
  EXPECT_NE(toy.run("run", 1, alone + " --verify-data"), 0);
  EXPECT_NE(said_since(toy.log("run"), before).find("b.h5: checksum mismatch"), std::string::npos)
      << toy.log("run");
  EXPECT_NE(toy.run("anew", 1, alone), 0);
}

TEST(Stores, OfOtherNodesMayBeCopiesButNotOtherData) {
  const ToyRun toy({.stages = kAlignStage, .save_every = 0});
  for (const char* node : {"/node0", "/node1"}) {
    fs::create_directory(toy.folder() + node);
    fs::copy_file(toy.folder() + "/a.h5", toy.folder() + node + std::string("/copy.h5"));
  }
  const fs::path before = fs::current_path();
  fs::current_path(toy.folder() + "/node0");
  const std::string set = " --set data.sources.a.files=[copy.h5]";
  const auto run = [&](const std::string& name) {
    return toy.run(name, 1,
                   set + " : -np 1 -wdir " + toy.folder() + "/node1 " SALA_BIN_DIR "/sala-train " +
                       toy.recipe() + " --set run.folder=" + toy.run_folder(name) + set);
  };
  EXPECT_EQ(run("copies"), 0) << toy.log("copies");
  fs::copy_file(toy.folder() + "/b.h5", toy.folder() + "/node1/copy.h5",
                fs::copy_options::overwrite_existing);
  EXPECT_NE(run("others"), 0);
  fs::current_path(before);
  EXPECT_NE(toy.log("others").find("copy.h5: holds other data on rank 1"), std::string::npos)
      << toy.log("others");
}

TEST(Stores, MoreThanTheSystemLetsOpen) {
  const ToyRun toy({.stages = kAlignStage, .save_every = 0});
  fs::create_directory(toy.folder() + "/many");
  for (int i = 0; i < 1010; ++i) {
    fs::create_hard_link(toy.folder() + "/b.h5",
                         toy.folder() + "/many/" + std::to_string(i) + ".h5");
  }
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit usual{256, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
  const int code =
      toy.run("run", 1, "--set 'data.sources.b.files=[" + toy.folder() + "/many/*.h5]'");
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_EQ(code, 0) << toy.log("run");
}

TEST(Stores, AStepWithoutTargetsIsPassedOver) {
  const ToyRun toy({.stages = kTrainStage, .save_every = 0});
  write_masked_store(toy, [](std::int64_t document) { return document % 4 == 0; });
  ASSERT_EQ(toy.run("run", 2), 0) << toy.log("run");
  const auto steps = toy.events("run", "step"), passed = toy.events("run", "step_without_targets");
  EXPECT_EQ(steps.size() + passed.size(), 32u);
  EXPECT_GT(steps.size(), 2u);
  EXPECT_GT(passed.size(), 2u);
  for (const auto& step : steps) EXPECT_TRUE(step.at("finite").get<bool>());
  EXPECT_NE(toy.log("run").find("no token of this step counts as a target"), std::string::npos);
  EXPECT_EQ(toy.log("run").find("not finite"), std::string::npos) << toy.log("run");

  // A run that ends before such a step and one that ends with it have the same weights.
  const int64_t step = passed.back().at("step");
  ASSERT_GT(step, steps[0].at("step").get<int64_t>());
  const std::string set = "--set stages.train.schedule=constant --set stages.train.warmup_steps=1";
  for (int64_t last : {step - 1, step}) {
    const std::string name = std::to_string(last);
    ASSERT_EQ(toy.run(name, 2, set + " --set stages.train.tokens=" + std::to_string(64 * last)), 0)
        << toy.log(name);
  }
  EXPECT_EQ(toy.last_manifest(std::to_string(step - 1)).at("tensors"),
            toy.last_manifest(std::to_string(step)).at("tensors"));
}

TEST(Stores, WithoutAnyTargetAreRefusedBeforeTheFirstStep) {
  const ToyRun toy({.stages = std::string(kAlignStage) +
                              "  - evaluate: {sources: [b], tokens: 1K, row_length: 64}\n"});
  write_masked_store(toy, [](std::int64_t) { return false; });
  EXPECT_NE(toy.run("run", 1), 0);
  EXPECT_NE(toy.log("run").find("held-out source b has no token to predict"), std::string::npos)
      << toy.log("run");
  EXPECT_TRUE(toy.events("run", "step").empty());
}

// The 600th read of a store is one of training. It fails, and so does opening the store again.
TEST(Stores, ADiskThatRefusesForAMomentIsWaitedFor) {
  const ToyRun toy({.stages = kLongTrain, .save_every = 0});
  ASSERT_EQ(toy.run("whole", 2), 0) << toy.log("whole");
  {
    const FailingCalls faults("pread */a.h5 600 EIO;pread */a.h5 601 ESTALE");
    EXPECT_EQ(toy.run("run", 2), 0) << toy.log("run");
  }
  const std::string log = toy.log("run"), warning = "sala-train: warning: rank 0 on ";
  const size_t told = log.find(warning);
  ASSERT_NE(told, std::string::npos) << log;
  EXPECT_EQ(log.find(warning, told + 1), std::string::npos) << log;
  EXPECT_NE(log.find("(tried again after 1, 5, 30 s)"), std::string::npos) << log;
  EXPECT_EQ(toy.events("run", "step"), toy.events("whole", "step"));
}

TEST(Stores, ARunThatWaitsForItsDiskIsStoppedWithItsCheckpoint) {
  const ToyRun toy({.stages = kLongTrain, .save_every = 0});
  {
    const FailingCalls faults("pread */a.h5 600 EIO -1;pread */a.h5 601 SIGUSR1");
    EXPECT_EQ(toy.run("run", 2), 75) << toy.log("run");
  }
  const auto steps = toy.events("run", "step"), saved = toy.events("run", "checkpoint");
  ASSERT_EQ(saved.size(), 1u) << toy.log("run");
  EXPECT_EQ(saved[0].at("step"), steps.back().at("step"));
  EXPECT_EQ(toy.run("run", 2), 0) << toy.log("run");
}

}  // namespace sala::test
