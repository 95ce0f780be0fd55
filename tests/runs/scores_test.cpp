// Which layers the score stage chooses, on a model of which that is known; that the number of ranks
// and a kill change nothing.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cmath>
#include <fstream>

#include "data/files/hdf5_file.h"
#include "tests/runs/induction_source.h"
#include "tests/runs/toy_run.h"

namespace sala::test {

namespace {

using Layers = std::vector<int64_t>;

// At a rate that leaves the small weights of the other layers small.
const std::string kAlign =
    "  - align: {tokens: 2K, row_length: 64, batch_tokens: 512, data: {a: 1}, lr: 1e-6}\n";
const std::string kRows = "data: {a: 1}, documents: 12, row_length: 128, recall_span: 32";

std::string score(const std::string& method, const std::string& more = "") {
  return fmt::format("  - score: {{name: {}, method: {}, {}{}}}\n", method, method, kRows, more);
}
const std::string kGates = score("gates", ", steps: 40, step_rows: 5, lr: 0.1");
std::string swap(int64_t keep) {
  return fmt::format("  - swap: {{keep: {}, force_ends: false}}\n", keep);
}

// A toy run on the model with planted layers.
struct PlantedRun {
  PlantedRun(const InductionModel& model, const std::string& stages)
      : toy({.stages = stages, .save_every = 0}) {
    write_induction_source(toy.folder() + "/source", model);
    write_induction_store(toy.folder() + "/a.h5", 40);
    write_induction_store(toy.folder() + "/b.h5", 4);
  }
  static std::string arguments(const std::string& more = "") {
    return "--set data.needles='\"\"' " + more;
  }
  void run(const std::string& name, int ranks, const std::string& more = "") const {
    ASSERT_EQ(toy.run(name, ranks, arguments(more)), 0) << toy.log(name);
  }
  // The event of the stage of this name.
  nlohmann::json scores(const std::string& name, const std::string& stage) const {
    for (const auto& event : toy.events(name, "scores")) {
      if (event.at("stage") == stage) return event;
    }
    ADD_FAILURE() << "no scores of " << stage << "\n" << toy.log(name);
    return {};
  }

  ToyRun toy;
};

void expect_same_scores(const nlohmann::json& one, const nlohmann::json& other) {
  EXPECT_EQ(one.at("kept"), other.at("kept"));
  const auto &a = one.at("layers"), &b = other.at("layers");
  ASSERT_EQ(a.size(), b.size());
  for (size_t l = 0; l < a.size(); ++l) {
    for (const char* key : {"score", "se"}) {
      const double x = a[l].at(key), y = b[l].at(key);
      EXPECT_NEAR(x, y, 1e-5 * (1 + std::abs(x))) << key << " of layer " << l;
    }
  }
}

}  // namespace

TEST(Scores, PlantedLayersComeFirstByEveryMethod) {
  const PlantedRun planted(
      {}, kAlign + score("kl") + score("halo") + score("retrieval") + kGates + swap(2));
  planted.run("run", 1);
  // It sees who copies, and not who looks at the token before.
  const auto looks = planted.scores("run", "retrieval").at("layers");
  for (const int64_t l : {0, 1, 2, 4}) {
    EXPECT_GT(looks[3].at("score").get<double>(), 3 * looks[l].at("score").get<double>()) << l;
  }
  EXPECT_GT(looks[3].at("recall").get<double>(), 0.5) << looks.dump(1);
  for (const char* method : {"kl", "halo", "gates"}) {
    const auto found = planted.scores("run", method);
    EXPECT_EQ(found.at("kept").get<Layers>(), (Layers{1, 3})) << found.dump(1);
    EXPECT_FALSE(found.at("within_noise").get<bool>()) << found.at("note");
    for (const auto& layer : found.at("layers")) {
      const int64_t l = layer.at("layer");
      EXPECT_NEAR(layer.at("kept_share").get<double>(), l == 1 || l == 3, 0.02) << method << l;
    }
  }
  // Recall is lost without the one or the other, and only then.
  const auto halo = planted.scores("run", "halo").at("layers");
  for (const int64_t l : {1, 3}) {
    EXPECT_LT(halo[l].at("recall").get<double>(), 0.5 * halo[0].at("recall").get<double>());
  }
  EXPECT_GT(halo[0].at("recall").get<double>(), 0.4);
  EXPECT_EQ(planted.toy.events("run", "gates").size(), 40u);
  const Hdf5File file = Hdf5File::open(planted.toy.run_folder("run") + "/scores.h5");
  for (const char* key : {"score", "plain", "recall", "se", "kept_share", "gate"}) {
    EXPECT_EQ(file.num_elements(key), 5) << key;
  }
}

// Either of layers 3 and 4 recalls: without one of them most of it is there, and one is enough.
TEST(Scores, GatesKeepOneOfLayersThatStandInForEachOther) {
  const InductionModel model{.num_layers = 6, .previous = 1, .induction = {3, 4}};
  const PlantedRun planted(model, kAlign + score("halo") + kGates + swap(2));
  planted.run("run", 2);
  const auto gates = planted.scores("run", "gates");
  const auto kept = gates.at("kept").get<Layers>();
  const auto halo = planted.scores("run", "halo").at("layers");
  for (const int64_t l : {3, 4}) {
    EXPECT_GT(halo[l].at("recall").get<double>(), 0.5 * halo[0].at("recall").get<double>()) << l;
  }
  EXPECT_EQ(kept[0], 1) << gates.dump(1);
  EXPECT_TRUE(kept[1] == 3 || kept[1] == 4) << gates.dump(1);
}

TEST(Scores, OneTwoAndThreeRanksGiveTheSame) {
  const PlantedRun planted({}, kAlign + score("halo") + score("retrieval") + kGates + swap(2));
  for (const int ranks : {1, 2, 3}) planted.run(std::to_string(ranks), ranks);
  planted.run("sharded", 2, "--set run.sharding=zero3");
  for (const char* other : {"2", "3", "sharded"}) {
    for (const char* method : {"halo", "retrieval", "gates"}) {
      SCOPED_TRACE(std::string(method) + " on " + other);
      expect_same_scores(planted.scores("1", method), planted.scores(other, method));
    }
  }
}

TEST(Scores, StepsOfTheGatesSurviveAKill) {
  const PlantedRun planted({}, kAlign + kGates + swap(2));
  planted.run("whole", 1);
  const pid_t process = planted.toy.start("killed", 2, PlantedRun::arguments());
  ASSERT_TRUE(planted.toy.wait_for_scores("killed", process, 7)) << planted.toy.log("killed");
  kill(planted.toy.first_rank("killed"), SIGKILL);
  waitpid(process, nullptr, 0);
  EXPECT_LT(planted.toy.num_scores("killed"), 40);
  planted.run("killed", 3);
  EXPECT_EQ(planted.toy.num_scores("killed"), 40);  // nothing was done twice
  expect_same_scores(planted.scores("whole", "gates"), planted.scores("killed", "gates"));
  EXPECT_EQ(planted.toy.events("killed", "gates").size(), 40u);
}

TEST(Scores, AStopAmongTheGatesIsContinued) {
  const PlantedRun planted({}, kAlign + kGates + swap(2));
  planted.run("whole", 1);
  const pid_t process = planted.toy.start("stopped", 1, PlantedRun::arguments());
  ASSERT_TRUE(planted.toy.wait_for_scores("stopped", process, 7)) << planted.toy.log("stopped");
  kill(process, SIGUSR1);
  int status = 0;
  waitpid(process, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 75) << planted.toy.log("stopped");
  planted.run("stopped", 1);
  EXPECT_EQ(planted.scores("whole", "gates"), planted.scores("stopped", "gates"));
  EXPECT_EQ(planted.toy.events("whole", "gates"), planted.toy.events("stopped", "gates"));
}

TEST(Scores, AnOrderFromAFileIsKept) {
  const PlantedRun planted({}, kAlign + score("kl") + swap(2));
  planted.run("run", 1);
  std::ofstream(planted.toy.folder() + "/order.txt") << "4, 2  # chosen by hand\n0 1\n";
  const PlantedRun other({}, kAlign + "  - score: {method: file, file: none}\n" + swap(2));
  const auto from = [](const std::string& file) { return "--set stages.score.file=" + file; };
  other.run("list", 2, from(planted.toy.folder() + "/order.txt"));
  EXPECT_EQ(other.scores("list", "score").at("kept").get<Layers>(), (Layers{2, 4}));
  other.run("scores", 1, from(planted.toy.run_folder("run") + "/scores.h5"));
  EXPECT_EQ(other.scores("scores", "score").at("kept"), planted.scores("run", "kl").at("kept"));
  EXPECT_EQ(other.toy.run("none", 1, PlantedRun::arguments()), 1) << other.toy.log("none");
  EXPECT_NE(other.toy.log("none").find("score.file: none: there is no such file"),
            std::string::npos)
      << other.toy.log("none");
}

}  // namespace sala::test
