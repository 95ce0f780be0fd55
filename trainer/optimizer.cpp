// AdamW on segments of shares that train with equal settings.
#include "trainer/optimizer.h"

#include <algorithm>
#include <utility>

#include "trainer/checkpoint/saved_shares.h"
#include "trainer/sharding/cut.h"

namespace sala {
namespace {

// Elements [begin, end) of a part's flat buffer that train with equal settings.
struct Segment {
  int64_t begin, end;
  double lr_scale, decay;
};

// Neighbours with equal settings are one run, with the padding between them (whose gradient is 0).
std::vector<Segment> runs_of(const Layout& layout, const OptimizerOptions& options,
                             std::vector<bool>& trains) {
  std::vector<Segment> runs;
  bool follows = false;  // the entry before trains
  for (const Entry& entry : layout.entries) {
    const ParameterRule rule = options.rule_for(entry.name);
    trains.push_back(!rule.freeze);
    if (!rule.freeze) {
      const double decay = entry.decay ? options.weight_decay : 0.0;
      const int64_t end = entry.offset + entry.num_elements();
      if (follows && runs.back().lr_scale == rule.lr_scale && runs.back().decay == decay) {
        runs.back().end = end;
      } else {
        runs.push_back({entry.offset, end, rule.lr_scale, decay});
      }
    }
    follows = !rule.freeze;
  }
  return runs;
}

}  // namespace

Optimizer::Optimizer(Parameters& parameters, const OptimizerOptions& options)
    : parameters_(parameters), options_(options) {
  std::vector<std::vector<bool>> trains(parameters.num_parts());
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    const Share& share = parameters.share(p);
    Part& part = parts_.emplace_back();
    const std::vector<Segment> runs = runs_of(*parameters.layout(p), options, trains[p]);
    for (const Segment& run : runs) {
      const int64_t begin = std::max(run.begin, share.begin);
      const int64_t count = std::min(run.end, share.end) - begin;
      if (count > 0) {
        part.segments.push_back({begin - share.begin, count, run.lr_scale, run.decay});
      }
    }
    if (runs.empty()) continue;
    part.m = at::zeros_like(share.master);
    part.v = at::zeros_like(share.master);
  }
  parameters.train(trains);
}

void Optimizer::release() { parameters_.train({}); }

at::Tensor Optimizer::part_square_sums() const {
  std::vector<at::Tensor> gradients;
  std::vector<int64_t> places;
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (parts_[p].segments.empty()) continue;
    gradients.push_back(parameters_.share(p).grad);
    places.push_back(static_cast<int64_t>(p));
  }
  const at::Device device = parameters_.options().device;
  at::Tensor squares = at::zeros({static_cast<int64_t>(parts_.size())},
                                 at::TensorOptions().dtype(at::kDouble).device(device));
  if (gradients.empty()) return squares;
  // Norms of fp32 values, summed in fp64 where that costs nothing beside the memory's speed.
  const at::Tensor norms = at::stack(at::_foreach_norm(gradients, 2, at::kDouble));
  for (size_t i = 0, begin = 0; i < places.size(); i = begin) {
    while (begin < places.size() && places[begin] - places[i] == static_cast<int64_t>(begin - i)) {
      ++begin;
    }
    const auto count = static_cast<int64_t>(begin - i);
    squares.narrow(0, places[i], count).copy_(norms.narrow(0, static_cast<int64_t>(i), count));
  }
  return squares.square_();
}

void Optimizer::step(double lr, const std::vector<double>& grad_scale) {
  TORCH_CHECK(grad_scale.size() == parts_.size(), "optimizer: expected ", parts_.size(),
              " gradient scales, got ", grad_scale.size());
  ++num_updates_;
  if (saved_) std::exchange(saved_, nullptr)->wait();
  for (size_t p = 0; p < parts_.size(); ++p) {
    Part& part = parts_[p];
    if (!part.m.defined()) continue;
    Share& share = parameters_.share(p);
    const AdamW options{lr,
                        options_.beta1,
                        options_.beta2,
                        options_.eps,
                        /*weight_decay=*/0,
                        grad_scale[p],
                        num_updates_};
    adamw_step(share.master, part.m, part.v, share.grad, share.copy, options, part.segments);
    parameters_.publish(p, /*copied=*/true);
  }
  parameters_.zero_gradients();
}

void Optimizer::save(StateWriter& out, const std::string& prefix) {
  if (auto copied = out.copied()) saved_ = std::move(copied);
  out.json("optimizer", {{"updates", num_updates_}});
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (!parts_[p].m.defined()) continue;
    save_share(out, {prefix, "m"}, parameters_, p, parts_[p].m);
    save_share(out, {prefix, "v"}, parameters_, p, parts_[p].v);
  }
}

void Optimizer::load(StateReader& in, const std::string& prefix) {
  num_updates_ = in.json("optimizer").at("updates").get<int64_t>();
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (!parts_[p].m.defined()) continue;
    load_share(in, {prefix, "m"}, parameters_, p, parts_[p].m);
    load_share(in, {prefix, "v"}, parameters_, p, parts_[p].v);
  }
}

int64_t Optimizer::num_bytes() const {
  int64_t sum = 0;
  for (const Part& part : parts_) {
    if (part.m.defined()) sum += static_cast<int64_t>(part.m.nbytes() + part.v.nbytes());
  }
  return sum;
}

int64_t Optimizer::planned_bytes(const std::vector<LayoutPtr>& layouts,
                                 const Parameters::Options& options, int num_ranks,
                                 const std::vector<bool>& trained) {
  const int ranks = options.sharding == Sharding::kNone ? 1 : num_ranks;
  int64_t sum = 0;
  for (size_t p = 0; p < layouts.size(); ++p) {
    const Cut cut(layouts[p]->num_elements, ranks);
    if (trained[p]) sum += 2 * cut.end(0) * static_cast<int64_t>(sizeof(float));
  }
  return sum;
}

}  // namespace sala
