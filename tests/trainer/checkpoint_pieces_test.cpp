// Large tensors in pieces, tensors found by name, and a checkpoint between snapshot and commit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/trainer/checkpoint_state.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/world.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// The place of `pattern` in the file.
std::streamoff find_in(const std::string& file, const std::string& pattern) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  const size_t at = bytes.find(pattern);
  return at == std::string::npos ? -1 : static_cast<std::streamoff>(at);
}

TEST(CheckpointPieces, AFlippedBitIsFoundByWhoeverNeedsItsPiece) {
  const ScratchFolder run = scratch("pieces_flip");
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  constexpr int64_t kPiece = 16 << 20;
  Layout layout;
  layout.name = "block";
  layout.add("block.up", {2 * kPiece + 1001}, true, Init::kNormal);
  const at::Tensor values = at::arange(layout.num_elements, at::kInt).view(at::kFloat);
  const auto save = [&](int64_t step) {
    return checkpoints.save({0, "train", step, false}, {}, [&](StateWriter& out) {
      out.tensor("block", "master", layout, values);
    });
  };
  const std::string older = save(1), newer = save(2), file = newer + "/rank-00000.h5";
  const int64_t damaged = kPiece + 12345;
  const std::streamoff at = find_in(
      file,
      std::string(reinterpret_cast<const char*>(values.const_data_ptr<float>() + damaged), 64));
  ASSERT_GT(at, 0);
  {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(at);
    const int byte = bytes.get();
    bytes.seekp(at);
    bytes.put(static_cast<char>(byte ^ 8));
  }
  const auto in = Checkpoints::open(newer);
  for (const auto& [begin, end] :
       {std::pair{int64_t{5}, kPiece}, {2 * kPiece, layout.num_elements}}) {
    at::Tensor range = at::empty({end - begin});
    in->tensor("block", "master", layout, begin, range);
    EXPECT_TRUE(bits_equal(range, values.narrow(0, begin, end - begin)));
  }
  const std::string expected = file +
                               ": dataset `block/master` is damaged: the hash of its elements "
                               "[16777216, 33554432) is not the manifest's";
  for (const int64_t begin : {kPiece - 1, 2 * kPiece - 1}) {  // both only touch it
    at::Tensor range = at::empty({2});
    const std::string error =
        message_of([&] { in->tensor("block", "master", layout, begin, range); });
    EXPECT_EQ(error.rfind(expected, 0), 0u) << error;
  }
  std::vector<std::string> skipped;
  EXPECT_EQ(checkpoints.newest_valid(skipped), older);
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_EQ(skipped[0].rfind(expected, 0), 0u) << skipped[0];
}

TEST(CheckpointPieces, TensorsAreFoundByNameWhereverTheyLie) {
  const ScratchFolder run = scratch("pieces_names");
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  Layout saved, other;
  saved.name = other.name = "mixer";
  saved.add("q", {7, 5}, true, Init::kNormal);
  saved.add("k", {3, 5}, true, Init::kNormal);
  saved.add("norm", {5}, false, Init::kOnes);
  other.entries = {{"norm", {5}, 2, false, Init::kOnes},
                   {"k", {3, 5}, 7, true, Init::kNormal},
                   {"q", {7, 5}, 22, true, Init::kNormal}};
  other.num_elements = 64;
  const at::Tensor values = state_values(saved, 3);
  const std::string folder = checkpoints.save({0, "train", 1, false}, {}, [&](StateWriter& out) {
    out.tensor("mixer", "master", saved, values);
  });
  at::Tensor expected = at::zeros({64});
  for (const Entry& entry : other.entries) {
    expected.narrow(0, entry.offset, entry.num_elements())
        .copy_(values.narrow(0, saved.find(entry.name)->offset, entry.num_elements()));
  }
  const auto in = Checkpoints::open(folder);
  for (const auto& [begin, end] : {std::pair{0, 64}, {0, 3}, {4, 30}, {21, 23}, {57, 64}}) {
    at::Tensor range = at::full({end - begin}, 9.0f);
    in->tensor("mixer", "master", other, begin, range);
    EXPECT_TRUE(bits_equal(range, expected.narrow(0, begin, end - begin).contiguous())) << begin;
  }
  Layout lacks = other, extra = other;
  lacks.entries.pop_back();
  extra.entries.push_back({"v", {1}, 60, true, Init::kNormal});
  at::Tensor full = at::empty({64});
  EXPECT_NE(message_of([&] {
              in->tensor("mixer", "master", lacks, full);
            }).find("saved q [7,5] at 0, which is not expected"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              in->tensor("mixer", "master", extra, full);
            }).find("expected v [1] at 60, which was not saved"),
            std::string::npos);
}

// What newest_valid has read of the manifest serves whoever opens the checkpoint after it.
TEST(CheckpointPieces, AResumeReadsTheManifestOnce) {
  const ScratchFolder run = scratch("pieces_once");
  const nlohmann::json recipe{{"key", "value"}};
  std::string folder;
  {
    Checkpoints checkpoints(run.path, world_of_one(), 3);
    folder = checkpoints.save({1, "train", 7, false}, recipe, [](StateWriter& out) {
      out.json("run", {{"tokens", 5}});
    });
  }
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  std::vector<std::string> skipped;
  ASSERT_EQ(checkpoints.newest_valid(skipped), folder);
  fs::remove(folder + "/manifest.json");
  const std::unique_ptr<OpenCheckpoint> in = checkpoints.open_on_all(folder);
  EXPECT_EQ(in->id().stage, "train");
  EXPECT_EQ(in->id().step, 7);
  EXPECT_EQ(in->recipe(), recipe);
  EXPECT_EQ(in->json("run").at("tokens"), 5);
  EXPECT_THROW(checkpoints.open_on_all(folder), std::runtime_error);  // it was given away
}

TEST(CheckpointPieces, OneIsWrittenAtATimeAndGivenUpWithItsOwner) {
  const ScratchFolder run = scratch("pieces_flight");
  const auto fill = [](StateWriter& out) { fill_state(out, 2, true); };
  {
    Checkpoints checkpoints(run.path, world_of_one(), 3);
    checkpoints.save({0, "train", 1, false}, {}, [](StateWriter& out) { fill_state(out, 1); });
    checkpoints.start({0, "train", 2, false}, {}, fill);
    EXPECT_TRUE(checkpoints.is_writing());
    EXPECT_THROW(checkpoints.start({0, "train", 3, false}, {}, fill), c10::Error);
  }
  Checkpoints checkpoints(run.path, world_of_one(), 3);
  std::vector<std::string> skipped;
  const auto newest = checkpoints.newest_valid(skipped);
  ASSERT_TRUE(newest);
  EXPECT_EQ(Checkpoints::id(*newest).step, 1);
  checkpoints.start({0, "train", 2, false}, {}, fill);
  const auto saved = checkpoints.finish();
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->id.step, 2);
  EXPECT_EQ(state_difference(saved->folder, 2, true), "");
}

}  // namespace
}  // namespace sala
