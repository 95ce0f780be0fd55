// Distillation from a teacher that was asked in an earlier run.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "data/teacher/folder.h"
#include "tests/faults/failing_calls.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 12;

// Rows of odd length with several documents each, three rows a step in micro-batches of two.
std::string stages(int64_t align_tokens = 1040) {
  return "  - align: {tokens: " + std::to_string(align_tokens) +
         ", row_length: 65, batch_tokens: 520, data: {a: 1, b: 2}, lr: 3e-3}\n"
         "  - swap: {layers: [0, 2]}\n"
         "  - distill: {tokens: " +
         std::to_string(kSteps * 393) +
         ", row_length: 131, batch_tokens: 393, micro_tokens: 262, data: {a: 1, b: 1}, lr: 2e-3, "
         "eps: 1e-6, topk: 8}\n";
}

struct CachedToy : ToyRun {
  explicit CachedToy(const std::string& list = stages()) : ToyRun({.stages = list}) {}

  std::string cache() const { return folder() + "/cache"; }
  std::string keeping(const std::string& more = "") const {
    return "--set stages.distill.teacher_cache=" + cache() + " " + more;
  }
  std::vector<nlohmann::json> distilled(const std::string& name) const {
    std::vector<nlohmann::json> steps;
    for (const auto& step : events(name, "step")) {
      if (step.at("stage") == "distill") steps.push_back(step);
    }
    return steps;
  }
  int64_t tokens_kept() const {
    return CacheReader(cache(), list_cache(cache())).index().num_tokens_before(int64_t{1} << 40);
  }
  bool loaded_a_teacher(const std::string& name) const {
    return log(name).find("no teacher is loaded") == std::string::npos;
  }
};

void expect_same(const CachedToy& toy, const std::string& a, const std::string& b) {
  const auto one = toy.distilled(a), other = toy.distilled(b);
  ASSERT_EQ(one.size(), static_cast<size_t>(kSteps)) << toy.log(a);
  ASSERT_EQ(other.size(), one.size()) << toy.log(b);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_EQ(one[i], other[i]) << a << ", " << b;
  EXPECT_EQ(toy.last_manifest(a).at("tensors"), toy.last_manifest(b).at("tensors"));
}

void expect_near(const CachedToy& toy, const std::string& a, const std::string& b, double bound) {
  const auto one = toy.distilled(a), other = toy.distilled(b);
  ASSERT_EQ(one.size(), static_cast<size_t>(kSteps)) << toy.log(a);
  ASSERT_EQ(other.size(), one.size()) << toy.log(b);
  for (size_t i = 0; i < one.size(); ++i) {
    for (const char* key : {"loss", "kl", "ce", "grad_norm"}) {
      const double x = one[i].at(key), y = other[i].at(key);
      EXPECT_LE(std::abs(x - y), bound * std::abs(x)) << b << " step " << i + 1 << " " << key;
    }
  }
}

std::string last_line(const std::string& log) {
  const size_t end = log.find_last_not_of('\n');
  return log.substr(log.rfind('\n', end) + 1);
}

}  // namespace

TEST(CachedTeacher, StepsAreThoseOfALiveOneCutAlike) {
  for (const std::string values : {"fp32", "fp16"}) {
    SCOPED_TRACE(values);
    CachedToy toy;
    const std::string rounded = "--set stages.distill.topk_values=" + values;
    ASSERT_EQ(toy.run("live", 1, rounded), 0) << toy.log("live");
    ASSERT_EQ(toy.run("first", 1, toy.keeping(rounded)), 0) << toy.log("first");
    EXPECT_EQ(toy.tokens_kept(), kSteps * 393);
    const auto written = list_cache(toy.cache()).next_number;
    ASSERT_EQ(toy.run("later", 1, toy.keeping(rounded)), 0) << toy.log("later");
    expect_same(toy, "live", "first");
    expect_same(toy, "live", "later");
    EXPECT_TRUE(toy.loaded_a_teacher("first"));
    EXPECT_FALSE(toy.loaded_a_teacher("later")) << toy.log("later");
    EXPECT_EQ(list_cache(toy.cache()).next_number, written);  // and writes nothing
  }
}

TEST(CachedTeacher, ServesOtherOptimizersBatchesAndLosses) {
  CachedToy toy;
  ASSERT_EQ(toy.run("first", 1, toy.keeping()), 0) << toy.log("first");
  const std::string other =
      "--set stages.distill.lr=1e-3 --set stages.distill.batch_tokens=262 --set "
      "stages.distill.ce_weight=0.3 --set stages.distill.tokens=4716";
  ASSERT_EQ(toy.run("live", 1, other), 0) << toy.log("live");
  ASSERT_EQ(toy.run("later", 1, toy.keeping(other)), 0) << toy.log("later");
  EXPECT_FALSE(toy.loaded_a_teacher("later"));
  const auto one = toy.distilled("live"), read = toy.distilled("later");
  ASSERT_EQ(one.size(), 18u);
  ASSERT_EQ(read.size(), one.size());
  for (size_t i = 0; i < one.size(); ++i) {
    const double a = one[i].at("loss"), b = read[i].at("loss");
    EXPECT_LE(std::abs(a - b), 1e-3 * a) << i;  // fp16 of words that were asked in other batches
  }
}

// Its steps are counted on, but those before it were smaller: the rows' own places count.
TEST(CachedTeacher, ServesAForkInsideItsStageWithOtherBatches) {
  CachedToy toy;
  const std::string saving = "--set stages.distill.save_every=4 --set run.keep_checkpoints=9";
  ASSERT_EQ(toy.run("first", 1, toy.keeping(saving)), 0) << toy.log("first");
  const std::string inside = "/checkpoints/02-distill-00000004";
  const std::string batches = " --set stages.distill.batch_tokens=786 --from ";
  const auto from = [&](const std::string& name) { return toy.run_folder(name) + inside; };
  ASSERT_EQ(toy.run("live", 1, saving + batches + from("first")), 0) << toy.log("live");
  ASSERT_EQ(toy.run("fork", 1, toy.keeping(saving + batches + from("first"))), 0)
      << toy.log("fork");
  EXPECT_FALSE(toy.loaded_a_teacher("fork"));
  const auto live = toy.distilled("live"), fork = toy.distilled("fork");
  ASSERT_EQ(live.size(), 2u);  // the fifth and sixth, of rows 12 to 23
  ASSERT_EQ(fork.size(), live.size());
  for (size_t i = 0; i < live.size(); ++i) {  // asked in other micro-batches
    const double a = live[i].at("loss"), b = fork[i].at("loss");
    EXPECT_LE(std::abs(a - b), 1e-5 * a) << i;
  }
  // Smaller ones end behind the rows that the stage has alone.
  const std::string smaller = " --set stages.distill.batch_tokens=262 --from " + from("first");
  EXPECT_NE(toy.run("beyond", 1, toy.keeping(saving + smaller)), 0);
  EXPECT_NE(last_line(toy.log("beyond")).find("but this step reads up to row 38"),
            std::string::npos)
      << toy.log("beyond");
}

TEST(CachedTeacher, CutToTheWholeVocabularyIsTheWholeTeacher) {
  CachedToy toy;
  const std::string whole = "--set stages.distill.topk=96 --set stages.distill.topk_values=fp32";
  ASSERT_EQ(toy.run("full", 1, "--set stages.distill.topk=0"), 0) << toy.log("full");
  ASSERT_EQ(toy.run("first", 1, toy.keeping(whole)), 0) << toy.log("first");
  ASSERT_EQ(toy.run("later", 1, toy.keeping(whole)), 0) << toy.log("later");
  ASSERT_EQ(toy.run("four", 4, toy.keeping(whole)), 0) << toy.log("four");  // one of them idle
  expect_near(toy, "full", "later", 1e-4);
  expect_near(toy, "full", "four", 1e-4);
  expect_same(toy, "first", "later");
}

TEST(CachedTeacher, AnyNumberOfRanksReadsWhatOthersWrote) {
  struct Writers {
    int ranks, context;
    const char* sharding;
  };
  CachedToy toy;
  const std::string exact = "--set stages.distill.topk_values=fp32";
  ASSERT_EQ(toy.run("live", 1, exact), 0) << toy.log("live");
  for (const auto& [ranks, context, sharding] : {Writers{2, 2, "none"}, Writers{3, 1, "zero3"}}) {
    fs::remove_all(toy.cache());
    for (const char* name : {"first", "again", "one", "four"}) {
      fs::remove_all(toy.run_folder(name));
      fs::remove(toy.folder() + "/" + name + ".log");
    }
    const std::string split = " --set stages.distill.context=" + std::to_string(context) +
                              " --set run.sharding=" + sharding;
    SCOPED_TRACE(split + " on " + std::to_string(ranks));
    ASSERT_EQ(toy.run("first", ranks, toy.keeping(exact + split)), 0) << toy.log("first");
    EXPECT_EQ(toy.tokens_kept(), kSteps * 393);
    ASSERT_EQ(toy.run("again", ranks, toy.keeping(exact + split)), 0) << toy.log("again");
    ASSERT_EQ(toy.run("one", 1, toy.keeping(exact)), 0) << toy.log("one");
    ASSERT_EQ(toy.run("four", 4, toy.keeping(exact + " --set stages.distill.context=2")), 0)
        << toy.log("four");
    expect_same(toy, "first", "again");
    for (const char* other : {"first", "one", "four"}) expect_near(toy, "live", other, 1e-4);
    for (const char* other : {"again", "one", "four"}) EXPECT_FALSE(toy.loaded_a_teacher(other));
  }
}

TEST(CachedTeacher, AKilledRunGoesOnWritingAndNothingIsMissing) {
  CachedToy toy;
  const std::string saving = toy.keeping("--set stages.distill.save_every=2");
  ASSERT_EQ(toy.run("live", 2), 0) << toy.log("live");
  for (const int64_t step : {3, 6, 9}) {
    const pid_t process = toy.start("killed", 2, saving);
    ASSERT_TRUE(toy.wait_for_step("killed", process, "distill", step)) << toy.log("killed");
    kill(toy.first_rank("killed"), SIGKILL);
    waitpid(process, nullptr, 0);
  }
  ASSERT_EQ(toy.run("killed", 2, saving), 0) << toy.log("killed");
  EXPECT_EQ(toy.tokens_kept(), kSteps * 393);
  ASSERT_EQ(toy.run("later", 2, toy.keeping()), 0) << toy.log("later");
  EXPECT_FALSE(toy.loaded_a_teacher("later"));
  expect_same(toy, "live", "killed");
  expect_same(toy, "live", "later");
}

TEST(CachedTeacher, ALongerRunAsksForTheRest) {
  CachedToy toy;
  const std::string half = "--set stages.distill.schedule=constant --set stages.distill.tokens=";
  ASSERT_EQ(toy.run("short", 1, toy.keeping(half + "1965")), 0) << toy.log("short");
  EXPECT_EQ(toy.tokens_kept(), 1965);
  ASSERT_EQ(toy.run("live", 1, half + "4716"), 0) << toy.log("live");
  ASSERT_EQ(toy.run("longer", 1, toy.keeping(half + "4716")), 0) << toy.log("longer");
  EXPECT_TRUE(toy.loaded_a_teacher("longer"));
  EXPECT_EQ(toy.tokens_kept(), 4716);
  expect_same(toy, "live", "longer");
}

TEST(CachedTeacher, AnotherTeacherOrOtherRowsAreRefused) {
  CachedToy toy;
  ASSERT_EQ(toy.run("first", 1, toy.keeping()), 0) << toy.log("first");
  const auto refused = [&](const std::string& name, const std::string& change,
                           const std::string& why) {
    EXPECT_NE(toy.run(name, 1, toy.keeping(change)), 0) << name;
    EXPECT_NE(toy.log(name).find(why), std::string::npos) << toy.log(name);
    EXPECT_TRUE(toy.distilled(name).empty()) << name;
  };
  refused("cut", "--set stages.distill.topk=9", "topk: 8 there, 9 here");
  refused("seed", "--set run.seed=4", "rows.seed: 3 there, 4 here");
  refused("rows", "--set stages.distill.row_length=393 --set stages.distill.micro_tokens=0",
          "rows.row_length: 131 there, 393 here");
  refused("mixture", "--set stages.distill.data.a=3", "rows.sources.a.share: 0.5 there, 0.75 here");
  refused("temperature", "--set stages.distill.temperature=2", "temperature: 1.0 there, 2.0 here");
  // What only the rows themselves tell: the stage begins elsewhere in the data.
  refused("later", "--set stages.align.tokens=1560", "the cache was filled from other rows");
  EXPECT_NE(last_line(toy.log("later")).find("read as much in them as that run did"),
            std::string::npos)
      << toy.log("later");
  // Other weights in a folder that looks the same.
  const std::string weights = toy.folder() + "/source/model.safetensors";
  CachedToy other(stages());
  fs::remove(weights);
  std::string bytes;
  {
    std::ifstream file(other.folder() + "/source/model.safetensors", std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  bytes[bytes.size() - 2] = static_cast<char>(bytes[bytes.size() - 2] ^ 1);
  std::ofstream(weights, std::ios::binary) << bytes;
  refused("weights", "", "teacher.weights: ");
}

TEST(CachedTeacher, ATornPartIsNamedAndCanBeAskedAgain) {
  CachedToy toy;
  ASSERT_EQ(toy.run("first", 2, toy.keeping()), 0) << toy.log("first");
  const std::string part = toy.cache() + "/" + list_cache(toy.cache()).parts.at(1).name;
  fs::resize_file(part, fs::file_size(part) / 2);
  EXPECT_NE(toy.run("torn", 2, toy.keeping()), 0);
  EXPECT_NE(toy.log("torn").find(part), std::string::npos) << toy.log("torn");
  fs::remove(part);
  ASSERT_EQ(toy.run("mended", 2, toy.keeping()), 0) << toy.log("mended");
  EXPECT_TRUE(toy.loaded_a_teacher("mended"));
  ASSERT_EQ(toy.run("later", 2, toy.keeping()), 0) << toy.log("later");
  EXPECT_FALSE(toy.loaded_a_teacher("later"));
  expect_same(toy, "first", "mended");
  expect_same(toy, "first", "later");
}

// The disk is done with the first part only when the run has written its 90th line of metrics.
TEST(CachedTeacher, ItsPartsAreWrittenBesideTheSteps) {
  CachedToy toy;
  const std::string later = toy.folder() + "/later";
  const FailingCalls slow_disk("write */metrics.jsonl 90 MARK:" + later +
                               ";fsync */cache/part-*.h5.tmp 1 UNTIL:" + later);
  const std::string longer =
      "--set stages.distill.tokens=62880 --set stages.distill.save_every=50 --set "
      "stages.distill.schedule=constant";
  ASSERT_EQ(toy.run("first", 1, toy.keeping(longer)), 0) << toy.log("first");
  EXPECT_GT(toy.step_at_commit("first", "distill", 50), 55) << toy.log("first");
}

// A run that goes on from a checkpoint does not come to the rows before it again.
TEST(CachedTeacher, ACheckpointIsNotCompleteBeforeItsPart) {
  CachedToy toy;
  ASSERT_EQ(toy.run("live", 1), 0) << toy.log("live");
  const std::string saving = toy.keeping("--set stages.distill.save_every=4");
  {
    const std::string part = "*/cache/part-00000000-00000.h5";
    const FailingCalls killed("fsync " + part + ".tmp 1 DELAY:300;rename " + part + " 1 SIGKILL");
    EXPECT_NE(toy.run("killed", 1, saving), 0);
  }
  EXPECT_FALSE(fs::exists(toy.run_folder("killed") + "/checkpoints/02-distill-00000004"));
  ASSERT_EQ(toy.run("killed", 1, saving), 0) << toy.log("killed");
  EXPECT_EQ(toy.tokens_kept(), kSteps * 393);
  expect_same(toy, "live", "killed");
}

// The first rank lists the cache for all; the others open the parts of the rows that they read: of
// two steps here, HDF5 opening a file twice.
TEST(CachedTeacher, RanksOpenThePartsThatTheyRead) {
  CachedToy toy;
  const std::string constant = " --set stages.distill.schedule=constant ";
  ASSERT_EQ(toy.run("first", 1, toy.keeping("--set stages.distill.save_every=1" + constant)), 0)
      << toy.log("first");
  ASSERT_EQ(list_cache(toy.cache()).parts.size(), static_cast<size_t>(kSteps));
  const std::string two_steps = toy.keeping(constant + "--set stages.distill.tokens=786");
  const std::string other_rank =
      " : -np 1 env LD_PRELOAD=" SALA_FAIL_CALLS_LIBRARY
      " ASAN_OPTIONS=verify_asan_link_order=0 "
      "SALA_FAIL_CALLS='open */cache/part-* 5 EIO -1' " SALA_BIN_DIR "/sala-train " +
      toy.recipe() + " --set run.folder=" + toy.run_folder("later") + " " + two_steps;
  ASSERT_EQ(toy.run("later", 1, two_steps + other_rank), 0) << toy.log("later");
  EXPECT_FALSE(toy.loaded_a_teacher("later"));
}

TEST(CachedTeacher, IsInThePlan) {
  CachedToy toy;
  ASSERT_EQ(toy.run("before", 1, toy.keeping("--check")), 0) << toy.log("before");
  EXPECT_NE(toy.log("before").find("on 0 of 4716 tokens, 44 bytes each: "), std::string::npos)
      << toy.log("before");
  EXPECT_NE(toy.log("before").find(" to come"), std::string::npos);
  ASSERT_EQ(toy.run("first", 1, toy.keeping()), 0) << toy.log("first");
  ASSERT_EQ(toy.run("after", 1, toy.keeping("--check")), 0) << toy.log("after");
  const std::string whole = "on 4716 of 4716 tokens, 44 bytes each: no teacher is loaded";
  EXPECT_NE(toy.log("after").find(whole), std::string::npos) << toy.log("after");
  const auto plan = [&](const std::string& name) {
    return toy.events(name, "start").at(0).at("stages").at(2);
  };
  ASSERT_EQ(toy.run("later", 1, toy.keeping()), 0) << toy.log("later");
  EXPECT_LT(plan("later").at("memory_bytes"), plan("first").at("memory_bytes"));
  EXPECT_LT(plan("later").at("flops"), plan("first").at("flops"));
  EXPECT_NE(toy.run("uncut", 1, toy.keeping("--set stages.distill.topk=0 --check")), 0);
  EXPECT_NE(toy.log("uncut").find("keeps a teacher that is cut: name topk"), std::string::npos);
  EXPECT_NE(toy.run("wide", 1, "--set stages.distill.topk=97 --check"), 0);
  EXPECT_NE(toy.log("wide").find("97 is more than the 96 ids"), std::string::npos);
}

}  // namespace sala::test
