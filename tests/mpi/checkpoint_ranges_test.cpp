// Checkpoints of which every rank holds a range: any cut is loaded as any other, about once in all,
// and the run goes on while they are written.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <thread>

#include "tests/mpi/shared_folder.h"
#include "tests/mpi/test_world.h"
#include "tests/trainer/checkpoint_state.h"
#include "trainer/checkpoint/checkpoints.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

// Shares as the engine cuts them: ceil(n / R) rounded up to 64 elements, the last ones short.
std::pair<int64_t, int64_t> share(int64_t n, int64_t rank, int64_t size) {
  const int64_t each = ((n + size - 1) / size + 63) / 64 * 64;
  return {std::min(n, rank * each), std::min(n, (rank + 1) * each)};
}

at::Tensor part_of(const at::Tensor& values, std::pair<int64_t, int64_t> range) {
  return values.narrow(0, range.first, range.second - range.first);
}

void save_share(StateWriter& out, const std::string& part, const std::string& field,
                const Layout& layout, const at::Tensor& values, bool frozen = false) {
  const auto range = share(values.numel(), test_world().rank(), test_world().size());
  if (frozen) {
    out.frozen("fixed", part, field, layout, range.first, part_of(values, range));
  } else {
    out.tensor(part, field, layout, range.first, part_of(values, range));
  }
}

Layout large_layout() {
  Layout layout;
  layout.name = "block";
  layout.add("block.gate", {1500, 1001}, true, Init::kNormal);
  layout.add("block.norm", {13}, false, Init::kOnes);
  layout.add("block.up", {1500, 1000}, true, Init::kNormal);
  return layout;
}

// Bytes that this process has asked the system to read.
int64_t bytes_read() {
  std::ifstream file("/proc/self/io");
  std::string key;
  int64_t value = 0;
  file >> key >> value;
  return value;
}

std::string save(Checkpoints& checkpoints, const std::function<void(StateWriter&)>& fill) {
  return checkpoints.save({1, "train", 4, false}, {}, fill);
}

TEST(CheckpointRanges, AnyCutIsLoadedAsAnyOther) {
  World& world = test_world();
  const SharedFolder run("ranges");
  Checkpoints checkpoints(run.path, world, 3);
  const Layout layout = large_layout(), tiny = state_layout("tiny");  // tiny: empty last shares
  const std::string folder = save(checkpoints, [&](StateWriter& out) {
    save_share(out, "block", "master", layout, state_values(layout, 1));
    save_share(out, "block", "m", layout, state_values(layout, 2));
    save_share(out, "tiny", "master", tiny, state_values(tiny, 3));
    save_share(out, "tiny", "fixed", tiny, state_values(tiny, 4), true);
  });
  const auto in = Checkpoints::open(folder);
  const auto check = [&](const char* part, const char* field, const Layout& of, int64_t seed) {
    const at::Tensor whole = state_values(of, seed);
    for (const int64_t size : {1, 2, 3, 7}) {
      for (int64_t rank = 0; rank < size; ++rank) {
        const auto range = share(of.num_elements, rank, size);
        at::Tensor got = at::full({range.second - range.first}, 7.0f);
        in->tensor(part, field, of, range.first, got);
        EXPECT_TRUE(bits_equal(got, part_of(whole, range).contiguous()))
            << part << "/" << field << " " << rank << " of " << size;
      }
    }
  };
  check("block", "master", layout, 1);
  check("block", "m", layout, 2);
  check("tiny", "master", tiny, 3);
  check("tiny", "fixed", tiny, 4);
}

TEST(CheckpointRanges, AResumeReadsTheCheckpointOnce) {
  World& world = test_world();
  const SharedFolder run("once");
  Checkpoints checkpoints(run.path, world, 3);
  const Layout layout = large_layout();
  const int64_t n = layout.num_elements;
  save(checkpoints, [&](StateWriter& out) {
    save_share(out, "block", "master", layout, state_values(layout, 1));
    save_share(out, "block", "m", layout, state_values(layout, 2));
    out.tensor("whole", "master", layout, state_values(layout, 3));
    out.frozen("fixed", "master", layout, state_values(layout, 4));
  });
  const double saved_bytes = 4.0 * 4.0 * static_cast<double>(n);
  at::Tensor master = at::empty({n}), fixed = at::empty({n});
  const auto range = share(n, world.rank(), world.size());
  at::Tensor mine = at::empty({range.second - range.first}), m = at::empty_like(mine);
  world.barrier();
  const int64_t before = bytes_read();
  std::vector<std::string> skipped;
  const auto newest = checkpoints.newest_valid(skipped);
  ASSERT_TRUE(newest);
  const auto in = checkpoints.open_on_all(*newest);
  in->tensor("block", "master", layout, range.first, mine);
  in->tensor("block", "m", layout, range.first, m);
  in->tensor("whole", "master", layout, master);
  in->tensor("fixed", "master", layout, fixed);
  at::Tensor bytes = at::tensor({bytes_read() - before}, at::kLong);
  world.comm().all_reduce_sum(bytes);
  const auto read = static_cast<double>(bytes.item<int64_t>());
  EXPECT_LT(read, 1.1 * saved_bytes + 2e6);
  EXPECT_GT(read, 0.9 * saved_bytes);
  EXPECT_TRUE(bits_equal(mine, part_of(state_values(layout, 1), range).contiguous()));
  EXPECT_TRUE(bits_equal(m, part_of(state_values(layout, 2), range).contiguous()));
  EXPECT_TRUE(bits_equal(master, state_values(layout, 3)));
  EXPECT_TRUE(bits_equal(fixed, state_values(layout, 4)));
  if (world.rank() == 0) {
    std::printf("a resume on %d ranks read %.2f times what was saved\n", world.size(),
                read / saved_bytes);
  }
}

TEST(CheckpointRanges, CopiesOfAModelReadItTogether) {
  World& world = test_world();
  if (world.size() % 2 != 0) GTEST_SKIP() << "needs groups of equal size";
  const SharedFolder run("copies");
  const int group = world.size() / 2;
  Comm& copies = *world.shard_comms(group).copies;
  Checkpoints checkpoints(run.path, world, 3);
  const Layout layout = large_layout();
  const at::Tensor values = state_values(layout, 1);
  const std::string folder = save(
      checkpoints, [&](StateWriter& out) { save_share(out, "block", "master", layout, values); });
  const auto range = share(layout.num_elements, world.rank() % group, group);
  const auto load = [&] {
    at::Tensor own = at::full({range.second - range.first}, 7.0f);
    const auto in = checkpoints.open_on_all(folder);
    in->tensor_of_copies("block", "master", layout, range.first, own, copies);
    return own;
  };
  const int64_t before = bytes_read();
  EXPECT_TRUE(bits_equal(load(), part_of(values, range).contiguous()));
  at::Tensor bytes = at::tensor({bytes_read() - before}, at::kLong);
  world.comm().all_reduce_sum(bytes);
  const auto saved_bytes = 4.0 * static_cast<double>(layout.num_elements);
  // Whole pieces: those at the borders of shares are read twice.
  EXPECT_LT(static_cast<double>(bytes.item<int64_t>()), 1.6 * saved_bytes + 2e6);

  // Saved by one rank, and a copy on each: pieces are read whole, and each once.
  const std::string of_one = checkpoints.save({1, "train", 5, false}, {}, [&](StateWriter& out) {
    const std::pair<int64_t, int64_t> all{0, world.rank() == 0 ? layout.num_elements : 0};
    out.tensor("block", "master", layout, 0, part_of(values, all));
  });
  const int64_t before_copies = bytes_read();
  at::Tensor full = at::empty({layout.num_elements});
  checkpoints.open_on_all(of_one)->tensor_of_copies("block", "master", layout, 0, full,
                                                    *world.shard_comms(1).copies);
  EXPECT_TRUE(bits_equal(full, values));
  bytes = at::tensor({bytes_read() - before_copies}, at::kLong);
  world.comm().all_reduce_sum(bytes);
  EXPECT_LT(static_cast<double>(bytes.item<int64_t>()), 1.1 * saved_bytes + 2e6);

  const std::string file = folder + "/rank-00000.h5";
  if (world.rank() == 0) fs::resize_file(file, fs::file_size(file) / 2);
  world.barrier();
  std::string error;
  try {
    load();
  } catch (const SharedError& caught) {
    error = caught.what();
  }
  EXPECT_NE(error.find(file), std::string::npos) << error;
}

TEST(CheckpointRanges, TheRunGoesOnUntilAllRanksHaveWritten) {
  World& world = test_world();
  const SharedFolder run("background");
  Checkpoints checkpoints(run.path, world, 3);
  const Layout layout = large_layout();
  at::Tensor values = state_values(layout, 1);
  checkpoints.start({1, "train", 4, false}, {},
                    [&](StateWriter& out) { save_share(out, "block", "master", layout, values); });
  values.zero_();  // the next step
  const auto more = [&](StateWriter& out) {
    for (const char* field : {"master", "m", "v"}) {
      save_share(out, "block", field, layout, values);
      out.tensor("whole", field, layout, values);
    }
  };
  checkpoints.prepare(more);  // of a stage that has begun while the other's boundary is written
  int64_t polls = 0;
  std::optional<SavedCheckpoint> saved;
  for (; !saved; ++polls) {
    EXPECT_TRUE(checkpoints.is_writing());
    saved = checkpoints.poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_FALSE(checkpoints.is_writing());
  EXPECT_FALSE(checkpoints.poll());
  EXPECT_FALSE(checkpoints.finish());
  EXPECT_GT(saved->write_seconds, 0);
  at::Tensor got = at::empty({layout.num_elements});
  Checkpoints::open(saved->folder)->tensor("block", "master", layout, got);
  EXPECT_TRUE(bits_equal(got, state_values(layout, 1)));
  const std::string next = checkpoints.save({1, "train", 5, false}, {}, more);
  Checkpoints::open(next)->tensor("whole", "v", layout, got);
  EXPECT_TRUE(bits_equal(got, values));
}

TEST(CheckpointRanges, FrozenRangesAreWrittenOnce) {
  World& world = test_world();
  const SharedFolder run("frozen");
  Checkpoints checkpoints(run.path, world, 1);
  Layout layout = state_layout("head");
  layout.add("head.zeros", {64 * world.size()}, true, Init::kZeros);
  const at::Tensor zeros = at::zeros({layout.num_elements});  // the same bits on every rank
  for (const int64_t step : {1, 2}) {
    const std::string folder =
        checkpoints.save({1, "train", step, false}, {}, [&](StateWriter& out) {
          for (const char* part : {"head", "other"}) {
            save_share(out, part, "master", layout, zeros, true);
          }
        });
    for (const char* part : {"head", "other"}) {
      at::Tensor got = at::ones({layout.num_elements});
      Checkpoints::open(folder)->tensor(part, "master", layout, got);
      EXPECT_TRUE(bits_equal(got, zeros));
    }
    world.barrier();
    const auto files = std::distance(fs::directory_iterator(run.path + "/checkpoints/frozen"), {});
    EXPECT_EQ(files, world.size());  // one for both parts
  }
}

TEST(CheckpointRanges, ThatLeaveAGapOrOverlapAreAnError) {
  World& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "needs a second range";
  const SharedFolder run("gap");
  Checkpoints checkpoints(run.path, world, 1);
  const Layout layout = large_layout();
  const at::Tensor values = state_values(layout, 1);
  for (const int64_t moved : {-64, 64}) {
    std::string error;
    try {
      save(checkpoints, [&](StateWriter& out) {
        auto range = share(values.numel(), world.rank(), world.size());
        if (world.rank() == 1) range.first += moved;
        out.tensor("block", "master", layout, range.first, part_of(values, range));
      });
    } catch (const SharedError& caught) {
      error = caught.what();
    }
    EXPECT_NE(error.find("block/master do not cover it once"), std::string::npos) << error;
  }
  std::vector<std::string> skipped;
  EXPECT_FALSE(checkpoints.newest_valid(skipped));
  EXPECT_TRUE(skipped.empty());
}

TEST(CheckpointRanges, DamageIsToldToAllRanksBeforeAnythingIsSent) {
  World& world = test_world();
  const SharedFolder run("damage_at_load");
  Checkpoints checkpoints(run.path, world, 3);
  const Layout layout = large_layout();
  const std::string folder = save(checkpoints, [&](StateWriter& out) {
    out.tensor("whole", "master", layout, state_values(layout, 3));
  });
  const std::string file = folder + "/rank-0000" + std::to_string(world.size() - 1) + ".h5";
  if (world.rank() == 0) fs::resize_file(file, fs::file_size(file) / 2);
  world.barrier();
  at::Tensor full = at::empty({layout.num_elements});
  const auto in = checkpoints.open_on_all(folder);
  std::string error;
  try {
    in->tensor("whole", "master", layout, full);
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  EXPECT_NE(error.find(file), std::string::npos) << error;
}

}  // namespace
}  // namespace sala
