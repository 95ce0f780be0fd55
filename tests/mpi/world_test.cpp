// The world and its collectives with real ranks.
#include "trainer/world.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/mpi/test_world.h"

namespace sala {
namespace {

// Values that only rank `r` has; rounding makes the order of a sum visible.
at::Tensor values_of(int r, int64_t count, at::ScalarType type) {
  if (type == at::kLong) return at::arange(count, at::kLong) * (r + 1);
  return at::sin(at::arange(count, at::kDouble) * 0.37 + r).mul_(1 + 0.1 * r).to(type);
}

at::Tensor expected_sum(int num_ranks, int64_t count, at::ScalarType type) {
  at::Tensor sum = values_of(0, count, type);
  for (int r = 1; r < num_ranks; ++r) sum += values_of(r, count, type);
  return sum;
}

// 1, odd, fewer than ranks, and more than one chunk.
const std::vector<int64_t> kCounts = {0, 1, 3, 7, 1001, (int64_t{1} << 20) + 5};

TEST(World, RanksAreNumberedOnceEach) {
  World& world = test_world();
  std::set<std::string> ranks;
  for (const std::string& text : world.gather(std::to_string(world.rank()))) ranks.insert(text);
  EXPECT_EQ(static_cast<int>(ranks.size()), world.size());
  EXPECT_LT(world.local_rank(), world.local_size());
  EXPECT_TRUE(world.device().is_cpu());
  EXPECT_EQ(world.compute_dtype(), at::kFloat);
  EXPECT_FALSE(world.host().empty());
}

TEST(World, HostSideAgreement) {
  World& world = test_world();
  const int last = world.size() - 1;
  EXPECT_TRUE(world.any(world.rank() == last));
  EXPECT_FALSE(world.any(false));
  EXPECT_EQ(world.broadcast(world.rank() == last ? std::string("a\0b", 3) : "", last),
            std::string("a\0b", 3));
  EXPECT_EQ(world.broadcast(""), "");
  const auto all = world.gather(std::string(static_cast<size_t>(world.rank()), 'x'));
  for (int r = 0; r < world.size(); ++r) {
    EXPECT_EQ(static_cast<int>(all[static_cast<size_t>(r)].size()), r);
  }
  world.barrier();
}

TEST(World, TextsOfAnyLengthAreGathered) {
  World& world = test_world();
  // More than one round, an empty one, and zero bytes inside.
  const auto text_of = [](int rank) {
    const auto size = rank == 1 ? 0 : (size_t{18} << 20) + static_cast<size_t>(rank);
    return std::string(size, static_cast<char>(rank));
  };
  const auto all = world.gather(text_of(world.rank()));
  const auto first = world.gather_first(text_of(world.rank()));
  ASSERT_EQ(static_cast<int>(all.size()), world.size());
  ASSERT_EQ(static_cast<int>(first.size()), world.rank() == 0 ? world.size() : 0);
  for (int r = 0; r < world.size(); ++r) {
    EXPECT_TRUE(all[static_cast<size_t>(r)] == text_of(r)) << r;
    EXPECT_TRUE(first.empty() || first[static_cast<size_t>(r)] == text_of(r)) << r;
  }
}

TEST(World, OneRanksErrorIsEveryRanksErrorAndNamesIt) {
  World& world = test_world();
  const int last = world.size() - 1;
  try {
    world.together("reading data", [&] {
      if (world.rank() == last) throw std::runtime_error("shard 7 is torn");
    });
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.rfind("reading data: ", 0), 0u) << text;
    EXPECT_NE(text.find("shard 7 is torn"), std::string::npos) << text;
    if (world.size() > 1) {
      EXPECT_NE(text.find("rank " + std::to_string(last)), std::string::npos) << text;
    }
  }
  EXPECT_FALSE(world.any(false));  // and the ranks are still in step
}

// One rank fails before an inner call that the others make: its outer call answers their inner one.
TEST(World, ErrorsAreSharedThroughNestedCalls) {
  World& world = test_world();
  const int last = world.size() - 1;
  std::string text;
  try {
    world.together("resuming", [&] {
      if (world.rank() == last) throw std::runtime_error("out of memory");
      world.together("reading masters", [] {});
    });
    FAIL() << "no error";
  } catch (const SharedError& error) {
    text = error.what();
  }
  EXPECT_NE(text.find("out of memory"), std::string::npos) << text;
  EXPECT_FALSE(world.any(false));  // the ranks are still in step
  EXPECT_THROW(
      world.together("outer",
                     [&] { world.together("inner", [] { throw std::runtime_error("all"); }); }),
      SharedError);
  EXPECT_FALSE(world.any(false));
}

TEST(Collectives, AllReduceSumsInRankOrder) {
  World& world = test_world();
  for (const auto type : {at::kFloat, at::kDouble, at::kLong}) {
    for (const int64_t count : kCounts) {
      at::Tensor x = values_of(world.rank(), count, type);
      world.comm().all_reduce_sum(x);
      EXPECT_TRUE(at::equal(x, expected_sum(world.size(), count, type))) << type << " " << count;
    }
  }
}

TEST(Collectives, ReduceScatterGivesTheSlicesOfAllReduce) {
  World& world = test_world();
  for (const auto type : {at::kFloat, at::kDouble, at::kLong}) {
    for (const int64_t count : kCounts) {
      const at::Tensor in = values_of(world.rank(), count * world.size(), type);
      at::Tensor out = at::empty({count}, type);
      world.comm().reduce_scatter_sum(out, in);
      const at::Tensor sum = expected_sum(world.size(), count * world.size(), type);
      EXPECT_TRUE(at::equal(out, sum.slice(0, count * world.rank(), count * (world.rank() + 1))))
          << type << " " << count;
    }
  }
}

TEST(Collectives, AllGatherIsInRankOrder) {
  World& world = test_world();
  for (const auto type : {at::kFloat, at::kBFloat16, at::kByte}) {
    for (const int64_t count : kCounts) {
      const at::Tensor in = values_of(world.rank(), count, at::kLong).to(type);
      at::Tensor out = at::empty({count * world.size()}, type);
      world.comm().all_gather(out, in);
      for (int r = 0; r < world.size(); ++r) {
        EXPECT_TRUE(at::equal(out.slice(0, count * r, count * (r + 1)),
                              values_of(r, count, at::kLong).to(type)))
            << type << " " << count << " from " << r;
      }
    }
  }
}

TEST(Collectives, BroadcastOfAnyTypeFromAnyRank) {
  World& world = test_world();
  for (int root = 0; root < world.size(); ++root) {
    for (const auto type : {at::kFloat, at::kBFloat16, at::kBool, at::kLong}) {
      const at::Tensor expected = values_of(root, 1001, at::kLong).to(type);
      at::Tensor x = world.rank() == root ? expected.clone() : at::zeros({1001}, type);
      world.comm().broadcast(x, root);
      EXPECT_TRUE(at::equal(x, expected)) << type << " from " << root;
    }
  }
}

TEST(Collectives, LargeBroadcastGoesInChunks) {
  World& world = test_world();
  const int64_t count = (int64_t{1} << 24) + 3;
  at::Tensor x = at::full({count}, world.rank() == 0 ? 1 : 0, at::kByte);
  world.comm().broadcast(x, 0);
  EXPECT_EQ(x.sum().item<int64_t>(), count);
}

TEST(Collectives, RingWhereAllSendFirstDoesNotBlock) {
  World& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "a ring needs two ranks";
  const int next = (world.rank() + 1) % world.size();
  const int before = (world.rank() + world.size() - 1) % world.size();
  for (const int64_t count : {int64_t{1}, int64_t{1001}, int64_t{5} << 20}) {
    at::Tensor mine = values_of(world.rank(), count, at::kFloat);
    world.comm().send(mine, next);
    mine.zero_();  // the buffer is free again as soon as send returns
    at::Tensor got = at::empty({count});
    world.comm().receive(got, before);
    EXPECT_TRUE(at::equal(got, values_of(before, count, at::kFloat))) << count;
  }
}

TEST(Collectives, ContractsAreChecked) {
  World& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "one rank has no MPI collectives";
  at::Tensor halves = at::ones({4}, at::kBFloat16);
  EXPECT_THROW(world.comm().all_reduce_sum(halves), c10::Error);
  at::Tensor columns = at::ones({4, 4}).t();
  EXPECT_THROW(world.comm().all_reduce_sum(columns), c10::Error);
  at::Tensor out = at::empty({3});
  EXPECT_THROW(world.comm().all_gather(out, at::ones({3})), c10::Error);
}

TEST(Collectives, GatherAndReduceInPlace) {
  World& world = test_world();
  const int rank = world.rank(), size = world.size();
  for (const int64_t count : kCounts) {
    at::Tensor whole = at::full({count * size}, -1.0);
    const at::Tensor own = whole.narrow(0, count * rank, count);
    own.copy_(values_of(rank, count, at::kFloat));
    world.comm().all_gather(whole, own);
    for (int r = 0; r < size; ++r) {
      EXPECT_TRUE(at::equal(whole.narrow(0, count * r, count), values_of(r, count, at::kFloat)))
          << count << " from " << r;
    }
    whole = values_of(rank, count * size, at::kFloat);
    at::Tensor sum = whole.narrow(0, count * rank, count);
    world.comm().reduce_scatter_sum(sum, whole);
    EXPECT_TRUE(
        at::equal(sum, expected_sum(size, count * size, at::kFloat).narrow(0, count * rank, count)))
        << count;
  }
}

// Neighbours share a sequence; each degree is one set of groups, made once.
TEST(World, RanksThatShareASequence) {
  World& world = test_world();
  EXPECT_EQ(world.sequence_comm(1), nullptr);
  for (const int context : {2, 4}) {
    if (world.size() % context != 0) {
      EXPECT_THROW(world.sequence_comm(context), c10::Error);
      continue;
    }
    Comm* comm = world.sequence_comm(context);
    ASSERT_NE(comm, nullptr);
    EXPECT_EQ(comm, world.sequence_comm(context));
    EXPECT_EQ(comm->size(), context);
    EXPECT_EQ(comm->rank(), world.rank() % context);
    at::Tensor ranks = at::empty({context}, at::kLong);
    comm->all_gather(ranks, at::full({1}, world.rank(), at::kLong));
    const int first = world.rank() / context * context;
    EXPECT_TRUE(at::equal(ranks, at::arange(first, first + context, at::kLong)));
    at::Tensor one = at::ones({3});
    comm->all_reduce_sum(one);
    EXPECT_TRUE(at::equal(one, at::full({3}, context, at::kFloat)));
    const int next = (comm->rank() + 1) % context;
    const int before = (comm->rank() + context - 1) % context;
    comm->send(at::full({1}, world.rank(), at::kLong), next);
    at::Tensor got = at::empty({1}, at::kLong);
    comm->receive(got, before);
    EXPECT_EQ(got.item<int64_t>(), first + before);
  }
  EXPECT_THROW(world.sequence_comm(world.size() + 1), c10::Error);
  EXPECT_THROW(world.sequence_comm(0), c10::Error);
}

TEST(World, WeightsAndGradientsTravelOverTheSameRanks) {
  World& world = test_world();
  for (Comm* comm : {&world.gather_comm(), &world.reduce_comm()}) {
    EXPECT_EQ(comm->rank(), world.rank());
    EXPECT_EQ(comm->size(), world.size());
  }
}

TEST(World, GroupsHoldCopiesOfTheModel) {
  World& world = test_world();
  for (int ranks = 1; ranks < world.size(); ++ranks) {
    if (world.size() % ranks != 0) continue;
    const World::ShardComms comms = world.shard_comms(ranks);
    EXPECT_EQ(comms.gather->size(), ranks);
    EXPECT_EQ(comms.gather->rank(), world.rank() % ranks);
    EXPECT_EQ(comms.copies->size(), world.size() / ranks);
    EXPECT_EQ(comms.copies->rank(), world.rank() / ranks);
    at::Tensor sum = at::full({1}, world.rank(), at::kLong);
    comms.reduce->all_reduce_sum(sum);
    comms.copies->all_reduce_sum(sum);
    EXPECT_EQ(sum.item<int64_t>(), world.size() * (world.size() - 1) / 2);
  }
  EXPECT_EQ(world.shard_comms(0).copies, nullptr);
  EXPECT_EQ(world.shard_comms(world.size()).copies, nullptr);
  EXPECT_THROW(world.shard_comms(world.size() + 1), c10::Error);
}

TEST(World, DenormalsAreFlushedOnAllThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  const at::Tensor x = at::full({1 << 20}, 1e-30) * 1e-12;
  EXPECT_EQ(x.count_nonzero().item<int64_t>(), 0);
  at::set_num_threads(before);
}

}  // namespace
}  // namespace sala
