// Masters, compute copies and gradients by sharding mode.
#include "trainer/parameters.h"

#include <algorithm>
#include <optional>

#include "trainer/planning/parameter_sizes.h"
#include "trainer/ranks/activity.h"
#include "trainer/sharding/gather_buffers.h"
#include "trainer/sharding/gradient_buffers.h"
#include "trainer/sharding/pool.h"
#include "trainer/sharding/side_stream.h"

namespace sala {
namespace {

// Of one rank, which computes by itself for long: on a CPU one answer may take more than an hour.
class OwnWeights final : public HeldWeights {
 public:
  using HeldWeights::HeldWeights;
  using Lender::lease;
  Lease lease(std::span<const size_t> parts) override {
    Activity::here().moves();
    return HeldWeights::lease(parts);
  }
};

constexpr int64_t kElementsAtOnce = int64_t{1} << 26;  // of a part on its way in

}  // namespace

struct Parameters::Impl {
  struct Part {
    Part(LayoutPtr part_layout, const Cut& part_cut, at::Device device)
        : layout(std::move(part_layout)), cut(part_cut), published(device) {}

    LayoutPtr layout;
    Cut cut;
    at::Tensor whole;         // (cut.padded()) compute dtype; none, zero1
    at::Tensor master, copy;  // (cut.share): slices of `whole` where they lie in it
    at::Tensor whole_grad;    // (cut.padded()); none, zero1
    at::Tensor grad;          // (cut.share): a slice of whole_grad where there is one
    Weights weights;          // over `whole`
    Share share;              // the above, without the padding
    std::vector<bool> trains;
    Gradient gradient;
    bool asked = false;    // the whole gradient has been zero-filled and may hold something
    bool summed = false;   // `grad` holds a sum over ranks (zero3: of earlier micro-batches)
    bool reduced = false;  // the step's last reduction has been queued
    Mark published;        // zero1: the whole copy's gather
  };

  Impl(const std::vector<LayoutPtr>& layouts, const Options& wanted, const ParameterComms& comms)
      : comms(comms),
        num_ranks(comms.gather == nullptr ? 1 : comms.gather->size()),
        options(effective_options(wanted, num_ranks)),
        rank(options.sharding == Sharding::kNone ? 0 : comms.gather->rank()),
        gather_stream(options.device),
        reduce_stream(options.device),
        reductions(options.device) {
    for (const LayoutPtr& layout : layouts) {
      cuts.push_back(cut_of(*layout, options.sharding, num_ranks));
      parts.push_back(make_part(layout, cuts.back()));
    }
    if (sharded_weights()) make_gather_buffers();
  }
  // The memory goes back to the current stream, where the side streams have to be through with it.
  ~Impl() {
    reductions.wait();
    for (size_t part = 0; part < parts.size(); ++part) wait_for_gather(part);
  }

  bool sharded_weights() const { return options.sharding == Sharding::kZero3; }
  bool master_is_copy() const {
    return options.trains && master_dtype(options.dtype) == options.dtype;
  }
  at::TensorOptions of(at::ScalarType dtype) const {
    return at::TensorOptions().dtype(dtype).device(options.device);
  }
  at::TensorOptions of_masters() const { return of(master_dtype(options.dtype)); }

  Part make_part(const LayoutPtr& layout, const Cut& cut) const {
    Part p(layout, cut, options.device);
    if (!sharded_weights()) {
      p.whole = at::zeros({cut.padded()}, of(options.dtype));
      p.weights = Weights(layout, p.whole.narrow(0, 0, cut.num_elements));
      p.copy = p.whole.narrow(0, rank * cut.share, cut.share);
    } else if (!master_is_copy()) {
      p.copy = at::zeros({cut.share}, of(options.dtype));
    }
    if (master_is_copy() && !sharded_weights()) {
      p.master = p.copy;
      p.copy = at::Tensor();
    } else if (options.trains) {
      p.master = at::zeros({cut.share}, of_masters());
    }
    p.share.begin = cut.begin(rank);
    p.share.end = cut.end(rank);
    if (p.master.defined()) p.share.master = without_padding(p, p.master);
    if (p.copy.defined()) p.share.copy = without_padding(p, p.copy);
    return p;
  }

  static at::Tensor without_padding(const Part& p, const at::Tensor& share) {
    return share.narrow(0, 0, p.share.end - p.share.begin);
  }

  void make_gather_buffers() {
    std::vector<GatherBuffers::Part> sources;
    for (const Part& p : parts) {
      sources.push_back({p.layout, p.cut, p.copy.defined() ? p.copy : p.master});
    }
    const std::vector<bool> all(parts.size(), true);
    const Pool pool = plan_pool(padded_sizes(cuts, all), options.units, /*held=*/false);
    gathers.emplace(std::move(sources), pool, *comms.gather, gather_stream);
  }

  // The current stream waits for gathers that read or write the part.
  void wait_for_gather(size_t part) const {
    if (gathers) gathers->wait_for_readers(part);
    parts[part].published.wait();
  }

  // All masters of a part, by the gather stream; they are there when the current stream gets on.
  at::Tensor gather_masters(const Part& p) const {
    at::Tensor out = at::empty({p.cut.padded()}, p.master.options());
    Mark done(options.device);
    gather_stream.run_after_current([&] {
      comms.gather->all_gather(out, p.master);
      done.record();
    });
    done.wait();
    return out.narrow(0, 0, p.cut.num_elements);
  }

  void make_gradient(Part& p, std::vector<bool> trains) const {
    p.trains = std::move(trains);
    if (std::find(p.trains.begin(), p.trains.end(), true) == p.trains.end()) return;
    if (sharded_weights()) {
      p.grad = at::zeros({p.cut.share}, of_masters());
    } else {
      p.whole_grad = at::zeros({p.cut.padded()}, of_masters());
      p.grad = p.whole_grad.narrow(0, rank * p.cut.share, p.cut.share);
      p.gradient = Gradient(p.layout, p.whole_grad.narrow(0, 0, p.cut.num_elements), p.trains);
    }
    p.share.grad = without_padding(p, p.grad);
  }

  void drop_gradients() {
    reductions.wait();
    gradients.reset();
    sum = at::Tensor();
    for (Part& p : parts) {
      p.trains.clear();
      p.gradient = Gradient();
      p.whole_grad = p.grad = p.share.grad = at::Tensor();
      p.asked = p.summed = p.reduced = false;
    }
  }

  // The share's sum over the groups; on the reduce stream.
  void sum_copies(Part& p) const {
    if (comms.copies != nullptr) comms.copies->all_reduce_sum(p.grad);
  }

  // zero3: one micro-batch's gradient into this rank's share of the sum.
  void add_reduced(size_t part, bool last) {
    Part& p = parts[part];
    const at::Tensor whole = gradients->take(part);
    reduce_stream.run_after_current([&] {
      if (p.summed) {
        at::Tensor more = sum.narrow(0, 0, p.cut.share);
        comms.reduce->reduce_scatter_sum(more, whole);
        p.grad.add_(more);
      } else {
        comms.reduce->reduce_scatter_sum(p.grad, whole);
      }
      gradients->give_back(part);
      if (last) sum_copies(p);
      reductions.record();
    });
    p.summed = true;
    p.asked = false;
    p.gradient = Gradient();
  }

  // none, zero1: the step's gradient, in place.
  void reduce_whole(Part& p) {
    if (!p.asked) p.whole_grad.zero_();
    p.asked = true;
    if (num_ranks == 1) return;
    reduce_stream.run_after_current([&] {
      if (options.sharding == Sharding::kNone) {
        comms.reduce->all_reduce_sum(p.whole_grad);
      } else {
        comms.reduce->reduce_scatter_sum(p.grad, p.whole_grad);
        sum_copies(p);
      }
      reductions.record();
    });
  }

  const ParameterComms comms;
  const int num_ranks;
  const Options options;
  const int rank;  // of the share
  std::vector<Cut> cuts;
  std::vector<Part> parts;
  SideStream gather_stream, reduce_stream;
  Mark reductions;  // all that are queued
  std::optional<GatherBuffers> gathers;
  std::optional<GradientBuffers> gradients;
  at::Tensor sum;  // (the largest share): what later micro-batches add
  StepClock* clock = nullptr;
};

Parameters::Parameters(std::vector<LayoutPtr> layouts, const Options& options,
                       const ParameterComms& comms)
    : impl_(std::make_unique<Impl>(layouts, options, comms)) {}
Parameters::~Parameters() = default;

size_t Parameters::num_parts() const { return impl_->parts.size(); }
const LayoutPtr& Parameters::layout(size_t part) const { return impl_->parts[part].layout; }
const Parameters::Options& Parameters::options() const { return impl_->options; }
const ParameterComms& Parameters::comms() const { return impl_->comms; }

Lease Parameters::lease(std::span<const size_t> parts) {
  Activity::here().moves();  // without sharding a step calls no collective for long
  std::vector<const Weights*> weights;
  if (!impl_->gathers) {
    for (size_t part : parts) {
      impl_->parts[part].published.wait();
      weights.push_back(&impl_->parts[part].weights);
    }
    return Lease(std::move(weights));
  }
  const Waiting waiting(impl_->clock);
  GatherBuffers& gathers = *impl_->gathers;
  std::vector<GatherBuffers::Buffer*> buffers;
  for (size_t part : parts) {
    buffers.push_back(&gathers.take(part));
    weights.push_back(&GatherBuffers::weights(*buffers.back()));
  }
  return Lease(std::move(weights), [&gathers, buffers = std::move(buffers)] {
    for (GatherBuffers::Buffer* buffer : buffers) gathers.give_back(*buffer);
  });
}

void Parameters::hint(std::span<const size_t> parts) {
  if (!impl_->gathers) return;
  for (size_t part : parts) impl_->gathers->hint(part);
}

void Parameters::train(const std::vector<std::vector<bool>>& trains) {
  impl_->drop_gradients();
  if (trains.empty()) return;
  TORCH_CHECK(impl_->options.trains, "parameters: no masters were made, so nothing can train");
  TORCH_CHECK(trains.size() == num_parts(), "parameters: expected flags of ", num_parts(),
              " parts, got ", trains.size());
  std::vector<bool> trained;
  for (size_t part = 0; part < num_parts(); ++part) {
    impl_->make_gradient(impl_->parts[part], trains[part]);
    trained.push_back(this->trains(part));
  }
  if (!impl_->sharded_weights()) return;
  const Pool pool =
      plan_pool(padded_sizes(impl_->cuts, trained), impl_->options.units, /*held=*/true);
  impl_->gradients.emplace(impl_->cuts, pool, impl_->of_masters());
  impl_->sum = at::zeros({largest_share(impl_->cuts, trained)}, impl_->of_masters());
}

bool Parameters::trains(size_t part) const { return impl_->parts[part].grad.defined(); }

Gradient& Parameters::gradient(size_t part) {
  Impl::Part& p = impl_->parts[part];
  if (!trains(part) || p.asked) return p.gradient;
  TORCH_CHECK(!p.reduced, p.layout->name, ": its gradient is the step's sum; zero_gradients()");
  p.asked = true;
  if (impl_->gradients) {
    const at::Tensor whole = impl_->gradients->take(part);
    p.gradient = Gradient(p.layout, whole.narrow(0, 0, p.cut.num_elements), p.trains);
  } else {
    p.whole_grad.zero_();
  }
  return p.gradient;
}

void Parameters::reduce(size_t part, bool last) {
  Impl::Part& p = impl_->parts[part];
  if (!trains(part)) return;
  TORCH_CHECK(!p.reduced, p.layout->name, ": reduced again after the step's last micro-batch");
  p.reduced = last;
  std::optional<Waiting> waiting;  // on the CPU the collective is done when reduce() returns
  if (impl_->options.device.is_cpu()) waiting.emplace(impl_->clock);
  if (impl_->gradients) {
    impl_->add_reduced(part, last);
  } else if (last) {
    impl_->reduce_whole(p);
  }
}

void Parameters::set_clock(StepClock* clock) { impl_->clock = clock; }

std::unique_ptr<Lender> Parameters::held() {
  std::vector<Weights> held;
  for (size_t part = 0; part < num_parts(); ++part) {
    if (!impl_->gathers) {
      impl_->parts[part].published.wait();
      held.push_back(impl_->parts[part].weights);
    } else {
      const Lease lease = Lender::lease(part);
      held.emplace_back(layout(part), lease[0].flat.clone());
    }
  }
  return std::make_unique<OwnWeights>(std::move(held));
}

void Parameters::finish_reductions() {
  const Waiting waiting(impl_->clock);
  impl_->reductions.wait();
  for (const Impl::Part& p : impl_->parts) {
    TORCH_CHECK(!p.grad.defined() || p.reduced, p.layout->name,
                ": trains, but was not reduced at the step's last micro-batch");
  }
}

void Parameters::zero_gradients() {
  for (Impl::Part& p : impl_->parts) {
    p.asked = p.summed = p.reduced = false;
    if (impl_->gradients) p.gradient = Gradient();
  }
  if (impl_->gradients) impl_->gradients->give_back_all();
}

bool Parameters::is_first_holder() const {
  if (!shares_are_partial())
    return impl_->comms.gather == nullptr || impl_->comms.gather->rank() == 0;
  return impl_->comms.copies == nullptr || impl_->comms.copies->rank() == 0;
}

Share& Parameters::share(size_t part) {
  impl_->wait_for_gather(part);
  return impl_->parts[part].share;
}

void Parameters::publish(size_t part, bool copied) {
  Impl::Part& p = impl_->parts[part];
  if (p.copy.defined() && p.master.defined() && !copied) p.share.copy.copy_(p.share.master);
  if (impl_->gathers) return impl_->gathers->source_changed(part);
  if (impl_->options.sharding == Sharding::kNone) return;
  impl_->gather_stream.run_after_current([&] {
    impl_->comms.gather->all_gather(p.whole, p.copy.defined() ? p.copy : p.master);
    p.published.record();
  });
}

void Parameters::set_whole(size_t part, const at::Tensor& flat) {
  Impl::Part& p = impl_->parts[part];
  TORCH_CHECK(flat.dim() == 1 && flat.numel() >= p.cut.num_elements, p.layout->name, ": expected ",
              p.cut.num_elements, " elements in one dimension, got ", flat.sizes());
  impl_->wait_for_gather(part);
  // `target` begins at element `begin` of the part. By way of the masters' precision, in pieces,
  // which travel as they are: a host converts more slowly than a device.
  const auto fill = [&](at::Tensor target, int64_t begin) {
    for (int64_t at = 0; at < target.numel(); at += kElementsAtOnce) {
      const int64_t count = std::min(kElementsAtOnce, target.numel() - at);
      const at::Tensor piece = flat.narrow(0, begin + at, count).to(impl_->options.device);
      target.narrow(0, at, count).copy_(piece.to(impl_->of_masters()));
    }
  };
  if (p.whole.defined()) fill(p.weights.flat, 0);
  if (p.share.master.defined()) fill(p.share.master, p.share.begin);
  if (p.share.copy.defined() && !p.whole.defined()) fill(p.share.copy, p.share.begin);
  if (impl_->gathers) impl_->gathers->source_changed(part);
}

at::Tensor Parameters::whole(size_t part) {
  Impl::Part& p = impl_->parts[part];
  const at::ScalarType dtype = master_dtype(impl_->options.dtype);
  impl_->wait_for_gather(part);
  const bool split = impl_->options.sharding != Sharding::kNone;
  if (p.master.defined() && split && !(p.whole.defined() && impl_->master_is_copy())) {
    return impl_->gather_masters(p);
  }
  if (p.master.defined() && !split) return p.share.master;
  if (p.whole.defined()) return p.weights.flat.to(dtype);
  return Lender::lease(part)[0].flat.to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

Parameters::Bytes Parameters::bytes() const {
  const auto of = [](const at::Tensor& x) {
    return x.defined() ? static_cast<int64_t>(x.numel() * x.element_size()) : int64_t{0};
  };
  Bytes bytes;
  for (const Impl::Part& p : impl_->parts) {
    bytes.masters += of(p.master);
    bytes.copies += p.whole.defined() ? of(p.whole) : of(p.copy);
    if (p.whole.defined() && impl_->master_is_copy()) bytes.copies -= of(p.master);
    bytes.gradients += p.whole_grad.defined() ? of(p.whole_grad) : of(p.grad);
  }
  if (impl_->gathers) bytes.buffers += impl_->gathers->num_bytes();
  if (impl_->gradients) bytes.buffers += impl_->gradients->num_bytes() + of(impl_->sum);
  return bytes;
}

}  // namespace sala
