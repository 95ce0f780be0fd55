// A small model for tests of Parameters on several ranks: its layouts, its gradients on each rank,
// a step over it, and the same training in one plain copy of the weights.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/ops.h"
#include "tests/mpi/test_world.h"
#include "trainer/optimizer.h"
#include "trainer/parameters.h"

namespace sala::sharded_model {

inline constexpr double kTolerance = 1e-6;
inline constexpr double kLearningRate = 1e-2;
inline constexpr double kGradScale = 0.5;  // as clipping would choose
inline const std::vector<Sharding> kModes = {Sharding::kNone, Sharding::kZero1, Sharding::kZero3};
inline const std::vector<at::ScalarType> kTypes = {at::kFloat, at::kBFloat16};

// An embedding that the head shares, two blocks with unlike mixers, and parts that are smaller than
// one rank's share.
inline std::vector<LayoutPtr> layouts() {
  const auto make = [](const std::string& name, std::vector<std::vector<int64_t>> matrices) {
    Layout layout;
    layout.name = name;
    layout.add(name + ".norm.weight", {5}, false, Init::kOnes);
    for (size_t i = 0; i < matrices.size(); ++i) {
      layout.add(name + ".w" + std::to_string(i) + ".weight", matrices[i], true, Init::kNormal);
    }
    return std::make_shared<const Layout>(std::move(layout));
  };
  return {make("embed", {{61, 13}}),          make("layers.0.block", {{31, 17}, {7, 3}}),
          make("layers.0.mixer", {{19, 11}}), make("layers.1.block", {{31, 17}, {7, 3}}),
          make("layers.1.mixer", {{19, 7}}),  make("head", {})};
}

inline const std::vector<std::vector<size_t>> kUnits = {{0}, {1, 2}, {3, 4}, {5, 0}};

inline Parameters::Options options_of(Sharding sharding, at::ScalarType dtype, bool trains = true) {
  return {dtype, at::kCPU, sharding, trains, kUnits};
}

// In groups of so many ranks, where they divide all of them.
inline ParameterComms comms(Sharding sharding, int shard_ranks) {
  World& world = test_world();
  const bool groups = sharding != Sharding::kNone && shard_ranks > 0 &&
                      world.size() > shard_ranks && world.size() % shard_ranks == 0;
  const World::ShardComms comms = world.shard_comms(groups ? shard_ranks : 0);
  return {comms.gather, comms.reduce, comms.copies};
}

inline OptimizerOptions optimizer_options() {
  OptimizerOptions options;
  options.weight_decay = 0.1;
  options.rules = {
      {"layers.1.mixer", 1.0, true}, {"layers.0.block.w1", 1.0, true}, {"norm", 0.5, false}};
  return options;
}

inline at::Tensor start_values(size_t part, int64_t count) {
  return at::sin(at::arange(count, at::kFloat) * 0.7 + static_cast<double>(part)) * 0.5;
}

// What a rank's micro-batch adds to an entry's gradient; it depends on the weights in use.
inline at::Tensor gradient_of(const at::Tensor& weights, int rank, int64_t micro, int64_t step) {
  const at::Tensor w = weights.to(at::kFloat);
  const double phase = rank + 0.3 * static_cast<double>(micro) + 0.1 * static_cast<double>(step);
  return (w + 2 + at::sin(at::arange(w.numel(), at::kFloat) * 0.37 + phase).view(w.sizes())) * 0.1;
}

// Between tensors of the layout; what lies between them decays with them or does not.
inline double largest_gap(const Layout& layout, const at::Tensor& a, const at::Tensor& b) {
  double most = 0;
  for (const Entry& entry : layout.entries) {
    const auto range = [&](const at::Tensor& x) {
      return x.narrow(0, entry.offset, entry.num_elements()).to(at::kDouble);
    };
    most = std::max(most, (range(a) - range(b)).abs().max().item<double>());
  }
  return most;
}

inline bool in_use_twice(size_t part) { return part == 0; }

// The plain computation: whole fp32 tensors, all ranks' gradients in a loop.
class Serial {
 public:
  explicit Serial(at::ScalarType dtype) : dtype_(dtype) {
    for (const LayoutPtr& layout : layouts()) {
      const at::Tensor values = start_values(parts_.size(), layout->num_elements);
      parts_.push_back({layout, values, at::zeros_like(values), at::zeros_like(values), {}});
    }
  }
  at::Tensor weights(size_t part) const { return parts_[part].master.to(dtype_); }
  const at::Tensor& master(size_t part) const { return parts_[part].master; }
  double square_sum(size_t part) const {
    return parts_[part].grad.to(at::kDouble).square().sum().item<double>();
  }

  void make_gradients(int num_ranks, int64_t num_micro, int64_t step) {
    const OptimizerOptions options = optimizer_options();
    for (size_t p = 0; p < parts_.size(); ++p) {
      Part& part = parts_[p];
      part.grad = at::zeros_like(part.master);
      for (const Entry& entry : part.layout->entries) {
        if (options.rule_for(entry.name).freeze) continue;
        const at::Tensor w = weights(p).narrow(0, entry.offset, entry.num_elements());
        at::Tensor sum = part.grad.narrow(0, entry.offset, entry.num_elements());
        for (int r = 0; r < num_ranks; ++r) {
          for (int64_t micro = 0; micro < num_micro; ++micro) {
            for (int use = in_use_twice(p) ? 0 : 1; use < 2; ++use) {
              sum += gradient_of(w, r, micro, step);
            }
          }
        }
      }
    }
  }

  void update(double scale, int64_t step) {
    const OptimizerOptions options = optimizer_options();
    for (Part& part : parts_) {
      for (const Entry& entry : part.layout->entries) {
        const ParameterRule rule = options.rule_for(entry.name);
        if (rule.freeze) continue;
        const auto range = [&](at::Tensor& x) {
          return x.narrow(0, entry.offset, entry.num_elements());
        };
        at::Tensor master = range(part.master), m = range(part.m), v = range(part.v);
        const AdamW adamw{
            kLearningRate * rule.lr_scale,          options.beta1, options.beta2, options.eps,
            entry.decay ? options.weight_decay : 0, scale,         step + 1};
        adamw_step(master, m, v, range(part.grad), {}, adamw);
      }
    }
  }

 private:
  struct Part {
    LayoutPtr layout;
    at::Tensor master, m, v, grad;
  };
  at::ScalarType dtype_;
  std::vector<Part> parts_;
};

inline void fill(Parameters& parameters) {
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    parameters.set_whole(p, start_values(p, parameters.layout(p)->num_elements));
  }
}

inline void add_gradients(Gradient& gradient, const Weights& weights, int64_t micro, int64_t step) {
  const Layout& layout = weights.layout();
  for (size_t i = 0; i < layout.entries.size(); ++i) {
    const std::string& name = layout.entries[i].name;
    if (!gradient.wants(name)) continue;
    gradient.add(name, gradient_of(weights.views()[i], test_world().rank(), micro, step));
  }
}

// The gradients of a step, as a training step leases, hints and reduces. `look` sees every lease.
template <class Look>
void run_step(Parameters& parameters, int64_t num_micro, int64_t step, const Look& look) {
  for (int64_t micro = 0; micro < num_micro; ++micro) {
    for (size_t u = 0; u < kUnits.size(); ++u) {
      const Lease lease = parameters.lease(kUnits[u]);
      if (u + 1 < kUnits.size()) parameters.hint(kUnits[u + 1]);
      for (size_t i = 0; i < kUnits[u].size(); ++i) look(kUnits[u][i], lease[i]);
    }
    for (size_t u = kUnits.size(); u-- > 0;) {
      const Lease lease = parameters.lease(kUnits[u]);
      if (u > 0) parameters.hint(kUnits[u - 1]);
      for (size_t i = 0; i < kUnits[u].size(); ++i) {
        const size_t part = kUnits[u][i];
        look(part, lease[i]);
        add_gradients(parameters.gradient(part), lease[i], micro, step);
        const bool comes_again = u + 1 == kUnits.size() && in_use_twice(part);
        if (!comes_again) parameters.reduce(part, micro + 1 == num_micro);
      }
    }
  }
  parameters.finish_reductions();
}

// The step's gradient norms by part, over all ranks.
inline at::Tensor square_sums(const Parameters& parameters, const Optimizer& optimizer) {
  at::Tensor squares = optimizer.part_square_sums();
  if (!parameters.is_first_holder()) squares.zero_();
  test_world().comm().all_reduce_sum(squares);
  return squares;
}

inline void update(Optimizer& optimizer) {
  optimizer.step(kLearningRate, std::vector<double>(optimizer.num_parts(), kGradScale));
}

inline void train(Parameters& parameters, Optimizer& optimizer, int64_t first_step,
                  int64_t last_step) {
  for (int64_t step = first_step; step < last_step; ++step) {
    run_step(parameters, 2, step, [](size_t, const Weights&) {});
    update(optimizer);
  }
}

inline std::vector<at::Tensor> all_whole(Parameters& parameters) {
  std::vector<at::Tensor> result;
  for (size_t p = 0; p < parameters.num_parts(); ++p) result.push_back(parameters.whole(p).clone());
  return result;
}

inline std::string name_of(Sharding sharding, at::ScalarType dtype) {
  const char* names[] = {"none", "zero1", "zero3"};
  return std::string(names[static_cast<int>(sharding)]) + " in " + c10::toString(dtype);
}

// Sharding, dtype, ranks of a group (0: all).
using ShardingCase = std::tuple<Sharding, at::ScalarType, int>;

class InEverySharding : public testing::TestWithParam<ShardingCase> {
 protected:
  Sharding mode() const { return std::get<0>(GetParam()); }
  at::ScalarType dtype() const { return std::get<1>(GetParam()); }
  ParameterComms comms_of(Sharding sharding) const {
    return sharded_model::comms(sharding, std::get<2>(GetParam()));
  }
  ParameterComms comms() const { return comms_of(mode()); }
};

inline std::string sharded_name(const testing::TestParamInfo<ShardingCase>& info) {
  const auto [mode, dtype, shard_ranks] = info.param;
  std::string name = name_of(mode, dtype);
  std::replace(name.begin(), name.end(), ' ', '_');
  return shard_ranks == 0 ? name : name + "_in_groups_of_" + std::to_string(shard_ranks);
}

inline auto every_sharding() {
  return testing::Combine(testing::ValuesIn(kModes), testing::ValuesIn(kTypes),
                          testing::Values(0, 2));
}

}  // namespace sala::sharded_model
