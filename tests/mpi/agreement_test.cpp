// What ranks must have in common: told with both values when they have not, and never saved.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/mpi/test_world.h"
#include "tests/trainer/checkpoint_state.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/ranks/agreement.h"
#include "trainer/ranks/tensor_fingerprint.h"

namespace sala {
namespace {

std::string shared_error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const SharedError& error) {
    return error.what();
  }
  return "";
}

TEST(Agreement, EqualFactsAreSilent) {
  require_equal_facts(test_world(), {{"lr", "1e-3"}, {"program", "abc"}});
}

TEST(Agreement, ADifferenceNamesRankHostAndBothValues) {
  World& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "one rank agrees with itself";
  const int last = world.size() - 1;
  Facts facts{{"lr", "1e-3"}, {"program", "abc"}};
  if (world.rank() == last) {
    facts["lr"] = "2e-3";
    facts["b.h5"] = "\xff";  // what a file's name may hold
  }
  const std::string error = shared_error_of([&] { require_equal_facts(world, facts); });
  const std::string name = std::to_string(last);
  for (const std::string& part :
       {"rank " + name + " (" + world.host() + ")", "lr: 1e-3 on rank 0, 2e-3 on rank " + name,
        std::string("b.h5: (absent) on rank 0")}) {
    EXPECT_NE(error.find(part), std::string::npos) << part << "\n" << error;
  }
  EXPECT_EQ(error.find("program"), std::string::npos) << error;
  EXPECT_FALSE(world.any(false));  // and the ranks are still in step
}

TEST(Agreement, AnErrorThatAllRanksShareNamesNone) {
  World& world = test_world();
  EXPECT_EQ(shared_error_of(
                [&] { world.together("", [] { throw std::runtime_error("no such recipe"); }); }),
            "no such recipe");
}

TEST(Agreement, WeightsThatDifferAreNotSaved) {
  World& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "one rank agrees with itself";
  const std::string folder = world.broadcast("/tmp/sala_agreement_" + std::to_string(getpid()));
  const Layout layout = state_layout("block.0");
  at::Tensor weights = state_values(layout, 5);
  Checkpoints checkpoints(folder, world, 2);
  const auto save = [&](int64_t step) {
    checkpoints.save({0, "align", step, false}, {}, [&](StateWriter& out) {
      out.json("run", {{"step", step}});
      out.tensor("block.0", "master", layout, weights);
    });
  };
  save(1);
  const int last = world.size() - 1;
  // One bit, in the share of a rank that would not have written it.
  if (world.rank() == last) weights.view(at::kInt)[0] += 1;
  const std::string error = shared_error_of([&] { save(2); });
  EXPECT_NE(error.find("block.0/master is not the same on all ranks"), std::string::npos) << error;
  EXPECT_NE(error.find("rank " + std::to_string(last)), std::string::npos) << error;
  std::vector<std::string> skipped;
  const auto newest = checkpoints.newest_valid(skipped);
  ASSERT_TRUE(newest);
  EXPECT_EQ(Checkpoints::id(*newest).step, 1);
  EXPECT_TRUE(skipped.empty());
  world.barrier();
  if (world.rank() == 0) std::filesystem::remove_all(folder);
}

TEST(TensorFingerprint, AnyChangedBitChangesIt) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kByte}) {
    for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{7}, (int64_t{1} << 20) + 3}) {
      at::Tensor x = at::arange(count, at::kLong).remainder(97).to(type);
      const std::string before = tensor_fingerprint(x);
      EXPECT_EQ(tensor_fingerprint(x.clone()), before);
      if (count == 0) continue;
      at::Tensor bytes = x.view({-1}).view(at::kByte);
      for (const int64_t at : {int64_t{0}, bytes.numel() / 2, bytes.numel() - 1}) {
        bytes[at].bitwise_xor_(1);
        EXPECT_NE(tensor_fingerprint(x), before) << type << " " << count << " byte " << at;
        bytes[at].bitwise_xor_(1);
      }
    }
  }
  const at::Tensor x = at::arange(100, at::kFloat);
  EXPECT_NE(tensor_fingerprint(x), tensor_fingerprint(x.flip(0).contiguous()));
}

}  // namespace
}  // namespace sala
