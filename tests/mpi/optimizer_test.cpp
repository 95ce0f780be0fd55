// The optimizer's state by ranges: saved in one sharding, continued in another.
#include "trainer/optimizer.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/mpi/sharded_model.h"

namespace sala {

using namespace sharded_model;

namespace {

// State in memory, whole, put together from all ranks' ranges.
class MemoryState : public StateWriter {
 public:
  void json(const std::string& name, const nlohmann::json& value) override { values[name] = value; }
  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              int64_t begin, const at::Tensor& range) override {
    at::Tensor full = at::zeros({layout.num_elements});
    full.narrow(0, begin, range.numel()).copy_(range);
    test_world().comm().all_reduce_sum(full);  // each element comes from one rank
    tensors[part + "/" + field] = full;
  }
  void tensor(const std::string& part, const std::string& field, const Layout&,
              const at::Tensor& full) override {
    tensors[part + "/" + field] = full.clone();
  }
  void frozen(const std::string&, const std::string&, const Layout&, const at::Tensor&) override {}
  void frozen(const std::string&, const std::string&, const std::string&, const Layout&, int64_t,
              const at::Tensor&) override {}

  nlohmann::json values;
  std::map<std::string, at::Tensor> tensors;
};

class MemoryReader : public StateReader {
 public:
  explicit MemoryReader(const MemoryState& state) : state_(state) {}
  bool has(const std::string& name) const override { return state_.values.contains(name); }
  nlohmann::json json(const std::string& name) const override { return state_.values.at(name); }
  bool has_tensor(const std::string& part, const std::string& field) const override {
    return state_.tensors.count(part + "/" + field) > 0;
  }
  void tensor(const std::string& part, const std::string& field, const Layout&, int64_t begin,
              at::Tensor& range) const override {
    range.copy_(state_.tensors.at(part + "/" + field).narrow(0, begin, range.numel()));
  }
  void tensor(const std::string& part, const std::string& field, const Layout&,
              at::Tensor& full) const override {
    full.copy_(state_.tensors.at(part + "/" + field));
  }
  Layout layout(const std::string&) const override { return {}; }
  std::vector<std::string> parts() const override { return {}; }

 private:
  const MemoryState& state_;
};

}  // namespace

class ShardedOptimizer : public InEverySharding {};

// Saved in this mode and continued in each of the others.
TEST_P(ShardedOptimizer, MomentsContinueInAnyMode) {
  Parameters parameters(layouts(), options_of(mode(), dtype()), comms());
  fill(parameters);
  Optimizer optimizer(parameters, optimizer_options());
  train(parameters, optimizer, 0, 3);
  MemoryState state;
  optimizer.save(state, "student/");
  const std::vector<at::Tensor> masters = all_whole(parameters);
  train(parameters, optimizer, 3, 6);
  const std::vector<at::Tensor> expected = all_whole(parameters);
  for (const Sharding other : kModes) {
    Parameters next(layouts(), options_of(other, dtype()), comms_of(other));
    for (size_t p = 0; p < next.num_parts(); ++p) next.set_whole(p, masters[p]);
    Optimizer again(next, optimizer_options());
    MemoryReader reader(state);
    again.load(reader, "student/");
    train(next, again, 3, 6);
    for (size_t p = 0; p < next.num_parts(); ++p) {
      const double gap = (next.whole(p) - expected[p]).abs().max().item<double>();
      EXPECT_LE(gap, other == mode() ? 0 : kTolerance) << "part " << p;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OnRanks, ShardedOptimizer, every_sharding(), sharded_name);

}  // namespace sala
