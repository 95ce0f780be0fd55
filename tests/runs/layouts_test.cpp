// How parameters are held, sequences split and activations made again changes memory and speed, and
// nothing else: losses, gradient norms and final parameters are those of one rank that holds all.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cmath>

#include "tests/runs/toy_run.h"
#include "trainer/checkpoint/checkpoints.h"

namespace sala::test {

namespace {

struct Placement {
  int ranks;
  const char* sharding;
  int context;
  const char* recompute;
  int shard_ranks = 0;

  std::string name() const {
    return fmt::format("{}_ranks_{}_groups_{}_context_{}_{}", ranks, sharding, shard_ranks, context,
                       recompute);
  }
  std::string arguments() const {
    std::string text =
        fmt::format("--set run.sharding={} --set run.shard_ranks={}", sharding, shard_ranks);
    for (const char* stage : {"align", "distill", "train", "evaluate"}) {
      text += fmt::format(" --set stages.{}.context={}", stage, context);
    }
    for (const char* stage : {"distill", "train"}) {
      text += fmt::format(" --set stages.{}.recompute={}", stage, recompute);
    }
    return text;
  }
};

// Odd lengths, packed documents that cross every border, fewer rows than ranks. AdamW's first steps
// move an element by lr * sign(gradient), whatever its size: an eps above the rounding of gradients
// keeps elements whose gradient is 0 but for rounding from going either way.
std::string stages(int64_t save_every, const std::string& attention) {
  const std::string save = fmt::format(", eps: 1e-6, save_every: {}}}\n", save_every);
  return "  - align: {tokens: 10400, row_length: 65, batch_tokens: 520, data: {a: 1, b: 2}, lr: "
         "3e-3" +
         save +
         "  - score: {method: kl, data: {a: 1}, documents: 4, row_length: 129, recall_span: 16}\n"
         "  - swap: {keep: 2}\n"
         "  - distill: {tokens: 10480, row_length: 131, batch_tokens: 524, data: {a: 1, b: 1}, "
         "lr: 2e-3, rules: [{match: self_attn, lr_scale: 2}, {match: mlp.up_proj, freeze: true}]" +
         save +
         "  - train: {tokens: 10280, row_length: 257, batch_tokens: 514, data: {b: 1}, lr: 1e-3, "
         "schedule: wsd, attention: " +
         attention + save +
         "  - evaluate: {sources: [a, b], tokens: 1K, row_length: 129, needle_lengths: [64, 150], "
         "needle_depths: [0.5], needles_per_cell: 2, needle_source: a}\n";
}

void expect_near(double a, double b, double bound, const std::string& what) {
  EXPECT_LE(std::abs(a - b), bound * std::abs(a)) << what << ": " << a << " and " << b;
}

// Where blocks are selected, rounding may turn a near tie: another list for one token moves
// gradients by more than rounding, though not the loss.
struct Bounds {
  double loss = 1e-5, gradient = 1e-5, parameters = 1e-5;
};
constexpr Bounds kSelecting{1e-5, 2e-4, 2e-4};

void expect_same_steps(const ToyRun& toy, const std::string& a, const std::string& b,
                       const Bounds& bounds = {}) {
  const auto one = toy.events(a, "step"), other = toy.events(b, "step");
  ASSERT_EQ(one.size(), 60u) << toy.log(a);
  ASSERT_EQ(other.size(), one.size()) << toy.log(b);
  for (size_t i = 0; i < one.size(); ++i) {
    const std::string where =
        fmt::format("{} {} step {}", b, one[i].at("stage").dump(), i % 20 + 1);
    expect_near(one[i].at("loss"), other[i].at("loss"), bounds.loss, where + " loss");
    if (one[i].contains("grad_norm")) {
      expect_near(one[i].at("grad_norm"), other[i].at("grad_norm"), bounds.gradient,
                  where + " gradient");
    }
  }
  const auto measured = toy.events(a, "evaluate"), again = toy.events(b, "evaluate");
  ASSERT_EQ(measured.size(), again.size());
  for (size_t i = 0; i < measured.size(); ++i) {
    expect_near(measured[i].at("sources").at("a").at("loss"),
                again[i].at("sources").at("a").at("loss"), bounds.parameters, b + " evaluation");
    EXPECT_EQ(measured[i].at("needles"), again[i].at("needles")) << b;
  }
}

// Of the last checkpoint, part by part: the difference's norm against the parameters'.
void expect_same_parameters(const ToyRun& toy, const std::string& a, const std::string& b,
                            const Bounds& bounds = {}) {
  const auto one = Checkpoints::open(toy.checkpoint_of(a, "done"));
  const auto other = Checkpoints::open(toy.checkpoint_of(b, "done"));
  ASSERT_EQ(one->parts(), other->parts());
  for (const std::string& part : one->parts()) {
    const Layout layout = one->layout(part);
    at::Tensor x = at::empty({layout.num_elements}), y = at::empty({layout.num_elements});
    one->tensor(part, "master", layout, 0, x);
    other->tensor(part, "master", layout, 0, y);
    EXPECT_LE((x - y).norm().item<double>(), bounds.parameters * x.norm().item<double>())
        << b << " " << part;
  }
}

}  // namespace

TEST(Layouts, EveryOneTrainsAsOneRankDoes) {
  ToyRun toy({.stages = stages(0, "dense"), .save_every = 0});
  ASSERT_EQ(toy.run("one", 1), 0) << toy.log("one");
  const Placement placements[] = {
      {2, "zero1", 1, "none"},      {2, "zero3", 1, "selective"}, {2, "none", 2, "full"},
      {2, "zero3", 2, "none"},      {3, "none", 3, "none"},       {3, "zero3", 1, "full"},
      {3, "zero1", 3, "selective"}, {4, "none", 4, "selective"},  {4, "zero3", 2, "full"},
      {4, "zero1", 2, "none"},      {4, "zero3", 4, "none"},      {4, "zero3", 1, "none", 2},
      {4, "zero1", 4, "full", 2},
  };
  for (const Placement& placement : placements) {
    SCOPED_TRACE(placement.name());
    const std::string name = placement.name();
    ASSERT_EQ(toy.run(name, placement.ranks, placement.arguments()), 0) << toy.log(name);
    expect_same_steps(toy, "one", name);
    expect_same_parameters(toy, "one", name);
  }
}

TEST(Layouts, SelectedBlocksAreThoseOfOneRankButForNearTies) {
  ToyRun toy({.stages = stages(0, "sparse"), .save_every = 0});
  ASSERT_EQ(toy.run("one", 1), 0) << toy.log("one");
  for (const Placement& placement :
       {Placement{3, "zero1", 3, "selective"}, {4, "zero3", 2, "full"}}) {
    const std::string name = placement.name();
    ASSERT_EQ(toy.run(name, placement.ranks, placement.arguments()), 0) << toy.log(name);
    expect_same_steps(toy, "one", name, kSelecting);
    expect_same_parameters(toy, "one", name, kSelecting);
  }
}

TEST(Layouts, TheSameOneTwiceIsBitEqual) {
  ToyRun toy({.stages = stages(0, "sparse"), .save_every = 0});
  const Placement placement{4, "zero3", 2, "selective"};
  for (const char* name : {"first", "second"}) {
    ASSERT_EQ(toy.run(name, placement.ranks, placement.arguments()), 0) << toy.log(name);
  }
  EXPECT_EQ(toy.events("first", "step"), toy.events("second", "step"));
  EXPECT_EQ(toy.last_manifest("first").at("tensors"), toy.last_manifest("second").at("tensors"));
}

TEST(Layouts, KilledInOneAndContinuedInAnother) {
  ToyRun toy({.stages = stages(4, "dense"), .save_every = 0});
  ASSERT_EQ(toy.run("one", 1), 0) << toy.log("one");
  const Placement placements[] = {
      {4, "zero3", 2, "full", 2}, {3, "zero1", 3, "none"}, {2, "zero3", 1, "selective"}};
  const char* const stage_of_kill[] = {"align", "distill", "train"};
  for (size_t i = 0; i < std::size(placements); ++i) {
    const Placement& p = placements[i];
    const pid_t process = toy.start("moved", p.ranks, p.arguments());
    ASSERT_TRUE(toy.wait_for_step("moved", process, stage_of_kill[i], 9)) << toy.log("moved");
    kill(toy.first_rank("moved"), SIGKILL);
    waitpid(process, nullptr, 0);
  }
  const Placement last{4, "none", 4, "none"};
  ASSERT_EQ(toy.run("moved", last.ranks, last.arguments()), 0) << toy.log("moved");
  expect_same_steps(toy, "one", "moved");
  expect_same_parameters(toy, "one", "moved");
}

}  // namespace sala::test
