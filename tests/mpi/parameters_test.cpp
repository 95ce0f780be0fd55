// Parameters in every sharding on several real ranks, against one plain copy of the weights that is
// trained by the sum of all ranks' gradients.
#include "trainer/parameters.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/mpi/sharded_model.h"
#include "trainer/checkpoint/saved_shares.h"

namespace sala {

using namespace sharded_model;

class ShardedParameters : public InEverySharding {};

TEST_P(ShardedParameters, TrainAsOnePlainCopyDoes) {
  const int num_ranks = test_world().size();
  for (const int64_t num_micro : {1, 3}) {
    Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
    fill(parameters);
    Optimizer optimizer(parameters, optimizer_options());
    Serial serial(dtype());
    // A bf16 weight that lies between two values may round either way.
    const double tolerance = dtype() == at::kFloat ? kTolerance : 1e-2;
    const auto look = [&](size_t part, const Weights& weights) {
      const double gap = largest_gap(weights.layout(), weights.flat, serial.weights(part));
      EXPECT_LE(gap, tolerance) << "part " << part;
    };
    for (int64_t step = 0; step < 6; ++step) {
      run_step(parameters, num_micro, step, look);
      serial.make_gradients(num_ranks, num_micro, step);
      const at::Tensor squares = square_sums(parameters, optimizer);
      for (size_t p = 0; p < parameters.num_parts(); ++p) {
        const double expected = serial.square_sum(p);
        EXPECT_NEAR(squares[p].item<double>(), expected, 1e-5 * expected) << "part " << p;
      }
      update(optimizer);
      serial.update(kGradScale, step);
    }
    for (size_t p = 0; p < parameters.num_parts(); ++p) {
      const double gap = largest_gap(*parameters.layout(p), parameters.whole(p), serial.master(p));
      EXPECT_LE(gap, dtype() == at::kFloat ? kTolerance : 2e-4) << "part " << p;
    }
  }
}

TEST_P(ShardedParameters, AreBitEqualFromRunToRun) {
  std::vector<at::Tensor> first;
  for (int run = 0; run < 2; ++run) {
    Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
    fill(parameters);
    Optimizer optimizer(parameters, optimizer_options());
    train(parameters, optimizer, 0, 5);
    const std::vector<at::Tensor> whole = all_whole(parameters);
    if (run == 0) first = whole;
    for (size_t p = 0; p < whole.size(); ++p) EXPECT_TRUE(at::equal(first[p], whole[p])) << p;
  }
}

TEST_P(ShardedParameters, LendTheRightWeightsInAnyOrder) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  fill(parameters);
  const int64_t bytes = parameters.bytes().all();
  std::mt19937 random(7);  // the same on every rank
  std::vector<std::pair<std::vector<size_t>, Lease>> held;
  for (int i = 0; i < 300; ++i) {
    std::vector<size_t> parts;
    for (size_t n = random() % 3 + 1; n > 0; --n)
      parts.push_back(random() % parameters.num_parts());
    switch (random() % 4) {
      case 0:
        parameters.hint(parts);
        break;
      case 1:
        if (!held.empty()) held.erase(held.begin() + static_cast<int64_t>(random() % held.size()));
        break;
      case 2:
        if (held.size() < 6) held.emplace_back(parts, parameters.lease(parts));
        break;
      default:
        const Lease lease = parameters.lease(parts);
        for (size_t j = 0; j < parts.size(); ++j) {
          const int64_t n = parameters.layout(parts[j])->num_elements;
          EXPECT_TRUE(at::equal(lease[j].flat, start_values(parts[j], n).to(dtype())));
        }
    }
    for (const auto& [those, lease] : held) {
      for (size_t j = 0; j < those.size(); ++j) {
        const int64_t n = parameters.layout(those[j])->num_elements;
        ASSERT_TRUE(at::equal(lease[j].flat, start_values(those[j], n).to(dtype())));
      }
    }
  }
  held.clear();
  EXPECT_EQ(parameters.bytes().all(), bytes) << "buffers beyond the planned ones did not go";
}

TEST_P(ShardedParameters, LendWhatWasWrittenAfterAHint) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  fill(parameters);
  const std::vector<size_t> unit = {1, 2};
  parameters.hint(unit);
  { const Lease lease = parameters.lease(unit); }
  parameters.hint(unit);
  const at::Tensor values = start_values(9, parameters.layout(1)->num_elements);
  parameters.set_whole(1, values);
  EXPECT_TRUE(at::equal(parameters.lease(unit)[0].flat, values.to(dtype())));
  parameters.hint(unit);
  Share& share = parameters.share(1);
  share.master.fill_(0.25);
  parameters.publish(1);
  EXPECT_TRUE(at::equal(parameters.lease(unit)[0].flat, at::full_like(values, 0.25).to(dtype())));
  EXPECT_TRUE(at::equal(parameters.whole(1), at::full_like(values, 0.25)));
}

TEST_P(ShardedParameters, GoWholeInAndOut) {
  for (const bool trains : {true, false}) {
    Parameters parameters(layouts(), options_of(mode(), dtype(), trains), comms());
    fill(parameters);
    for (size_t p = 0; p < parameters.num_parts(); ++p) {
      const at::Tensor values = start_values(p, parameters.layout(p)->num_elements);
      const at::Tensor expected = trains ? values : values.to(dtype()).to(at::kFloat);
      EXPECT_TRUE(at::equal(parameters.whole(p), expected)) << "part " << p;
      const Share& share = parameters.share(p);
      EXPECT_EQ(share.master.defined(), trains);
      if (!share.copy.defined()) continue;
      const at::Tensor slice = values.slice(0, share.begin, share.end).to(dtype());
      EXPECT_TRUE(at::equal(share.copy, slice)) << "part " << p;
    }
    // Doubles, and a buffer that is longer than the part.
    const at::Tensor longer = start_values(3, 5000).to(at::kDouble);
    parameters.set_whole(0, longer);
    const int64_t n = parameters.layout(0)->num_elements;
    const at::Tensor expected = longer.narrow(0, 0, n).to(trains ? at::kFloat : dtype());
    EXPECT_TRUE(at::equal(parameters.whole(0), expected.to(at::kFloat)));
  }
}

TEST_P(ShardedParameters, HoldWhatIsPlannedAndNeverMore) {
  const int num_ranks = comms().gather->size();
  for (const bool trains : {true, false}) {
    const Parameters::Options options = options_of(mode(), dtype(), trains);
    Parameters parameters(layouts(), options, comms());
    fill(parameters);
    EXPECT_EQ(parameters.bytes(), Parameters::planned_bytes(layouts(), options, num_ranks, {}));
    if (!trains) continue;
    Optimizer optimizer(parameters, optimizer_options());
    std::vector<bool> trained;
    for (size_t p = 0; p < parameters.num_parts(); ++p) trained.push_back(parameters.trains(p));
    EXPECT_FALSE(trained[4]);
    const auto planned = Parameters::planned_bytes(layouts(), options, num_ranks, trained);
    EXPECT_EQ(parameters.bytes(), planned);
    const int64_t moments = Optimizer::planned_bytes(layouts(), options, num_ranks, trained);
    EXPECT_LE(optimizer.num_bytes(), moments);
    if (comms().gather->rank() == 0) {
      EXPECT_EQ(optimizer.num_bytes(), moments);
    }
    for (int64_t step = 0; step < 50; ++step) {
      const auto look = [&](size_t, const Weights&) { EXPECT_EQ(parameters.bytes(), planned); };
      run_step(parameters, 2, step, look);
      update(optimizer);
      ASSERT_EQ(parameters.bytes(), planned) << "after step " << step;
    }
    optimizer.release();
    EXPECT_EQ(parameters.bytes(), Parameters::planned_bytes(layouts(), options, num_ranks, {}));
  }
}

TEST_P(ShardedParameters, AGradientThatNobodyAskedForIsZero) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  fill(parameters);
  Optimizer optimizer(parameters, optimizer_options());
  run_step(parameters, 1, 0, [](size_t, const Weights&) {});
  parameters.zero_gradients();  // a step that was given up
  for (size_t p = 0; p < parameters.num_parts(); ++p) parameters.reduce(p, true);
  parameters.finish_reductions();
  EXPECT_EQ(square_sums(parameters, optimizer).sum().item<double>(), 0);
}

TEST_P(ShardedParameters, ContractsOfAStepAreChecked) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  Optimizer optimizer(parameters, optimizer_options());
  EXPECT_FALSE(parameters.gradient(4).wants_any());  // frozen
  EXPECT_THROW(parameters.finish_reductions(), c10::Error);
  parameters.gradient(1);
  parameters.reduce(1, true);
  EXPECT_THROW(parameters.reduce(1, true), c10::Error);
  parameters.zero_gradients();
  Parameters teacher(layouts(), options_of(mode(), dtype(), false), comms());
  EXPECT_THROW(teacher.train(std::vector<std::vector<bool>>(6)), c10::Error);
}

TEST_P(ShardedParameters, SavedRangesAreTheWholeOnce) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  if (!parameters.shares_are_partial()) return;  // whole tensors are dealt out by the writer
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    at::Tensor times = at::zeros({parameters.layout(p)->num_elements});
    const SavedRange range = saved_range(parameters, p);
    times.narrow(0, parameters.share(p).begin + range.begin, range.count) += 1;
    test_world().comm().all_reduce_sum(times);
    EXPECT_TRUE(at::equal(times, at::ones_like(times))) << "part " << p;
  }
}

TEST_P(ShardedParameters, ACopyThatDiffersInOneBitIsSeen) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  fill(parameters);
  EXPECT_TRUE(equals_first_copy(parameters));
  const Comm* copies = comms().copies;
  if (copies == nullptr || copies->rank() == 0) {
    EXPECT_TRUE(equals_first_copy(parameters));
    return;
  }
  at::Tensor element = parameters.share(1).master.narrow(0, 3, 1).view(at::kInt);
  element.bitwise_xor_(1);
  EXPECT_FALSE(equals_first_copy(parameters));
}

INSTANTIATE_TEST_SUITE_P(OnRanks, ShardedParameters, every_sharding(), sharded_name);

}  // namespace sala
