// The parameters of one model on this rank: fp32 masters, compute copies and gradients, whole or
// sharded over all ranks. Student, teacher and the mixers in alignment are all this. Whoever runs a
// unit leases its weights here; the optimizer and checkpoints work on this rank's share of each
// part. Where each byte of a rank's weights comes from:
//
//   sharding | masters, moments | gradients summed over ranks     | compute copies
//   none     | whole            | whole, all-reduced              | whole
//   zero1    | share            | whole, at a step's end reduced  | whole, gathered after the
//            |                  | into its own share              | update
//   zero3    | share            | share; a whole buffer per part  | share, gathered into a buffer
//            |                  | at work (sharding/pool.h)       | at a lease (sharding/pool.h)
//
// A part's flat buffer of n elements is cut into R equal shares (sharding/cut.h), R being the ranks
// of the communicators: all, or groups that each hold a copy of the model (several nodes, say,
// whose ranks gather over NVLink alone); shares of gradients are then summed over the groups as
// well, once a step. Masters and gradients are fp32 (fp64 where the compute dtype is). Without
// training (a teacher) there are compute copies alone. Where the compute dtype is the masters' (CPU
// ranks), the copy is not made twice: under none the whole masters are the copy, under zero1 a
// rank's master is its slice of the whole copy, under zero3 leases gather the masters. In a world
// of one rank every sharding is none.
//
// What else a rank's memory holds while it trains, each said in one file (planning/plan.cpp adds up
// what lies on the device, and says what an evaluation in between takes):
//
//   moments       two more of each trained share               trainer/optimizer.h
//   teacher       Parameters without masters                   trainer/run.h
//   activations   what units keep from forward to backward,    model/kept_tensors.h
//                 and what one unit at work takes on top
//   logits        of a chunk of tokens, at the head            kernels/vocabulary/chunks.h
//   rows          of this step, on the device                  trainer/batches.h
//   on the host   rows of steps to come                        data/loader.h
//                 inputs of blocks (recompute: offload)        trainer/input_offload.h
//                 this rank's share of a checkpoint            trainer/checkpoint/staging.h
//                 a kept teacher's words, until written        data/teacher/folder.h
//
// Gathers and reductions run on streams of their own, and wait for what they read and write by
// events; the host never waits. Every rank makes the same calls in the same order.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "kernels/collectives.h"
#include "model/weights/gradient.h"
#include "model/weights/lender.h"
#include "trainer/step_clock.h"

namespace sala {

enum class Sharding { kNone, kZero1, kZero3 };

// Communicators over the same ranks, so that weights on their way to a unit and gradients on their
// way back do not wait for each other. On CPU ranks both may be one. Null: one rank.
struct ParameterComms {
  Comm* gather = nullptr;
  Comm* reduce = nullptr;
  // Ranks that hold the same share, one of each group. Null: there is one group.
  Comm* copies = nullptr;
};

// This rank's elements [begin, end) of a part's flat buffer; the range may be empty.
struct Share {
  int64_t begin = 0, end = 0;
  at::Tensor master;  // (end - begin) fp32 (fp64); undefined where the model does not train
  at::Tensor grad;    // likewise; undefined where nothing of the part trains
  at::Tensor copy;    // (end - begin) compute dtype: what an update writes beside the master;
                      // undefined where the master is the copy
};

class Parameters : public Lender {
 public:
  struct Options {
    at::ScalarType dtype = at::kFloat;  // of compute copies
    at::Device device = at::kCPU;
    Sharding sharding = Sharding::kNone;
    bool trains = false;  // has masters (and gradients for what train() names)
    // The parts that are leased together, in the order of a forward pass: a model's units, and at
    // the end its head_parts(). Says how many buffers zero3 needs (sharding/pool.h); leases that
    // keep to it, each with a hint for the next, never make another.
    std::vector<std::vector<size_t>> units;
  };
  // Everything but the gradients is made here, zero-filled.
  Parameters(std::vector<LayoutPtr> layouts, const Options& options, const ParameterComms& comms);
  ~Parameters() override;

  size_t num_parts() const;
  const LayoutPtr& layout(size_t part) const;
  const Options& options() const;  // `sharding` as it is in effect
  const ParameterComms& comms() const;

  // ---- running units. A lease must end before this object does, and before publish() of a part
  // of it.
  using Lender::lease;
  Lease lease(std::span<const size_t> parts) override;
  void hint(std::span<const size_t> parts) override;

  // All parts at once on this rank, for passes that ranks do not make in step (generation). What is
  // whole anyway is lent, what is sharded is gathered: a collective, and memory for all of it.
  std::unique_ptr<Lender> held();

  // ---- training. Which entries of each part train; makes the gradient buffers. Empty: none any
  // more, and the buffers go.
  void train(const std::vector<std::vector<bool>>& trains);
  bool trains(size_t part) const;
  // The buffer that this micro-batch's backward adds to: zero-filled when first asked for after
  // zero_gradients(), under zero3 after reduce(). Good until then. Wants nothing where nothing of
  // the part trains.
  Gradient& gradient(size_t part);
  // A backward pass is through with this part. Every rank calls it for every part, in one order,
  // once per micro-batch; `last`: of the step's last micro-batch. Sums over ranks when the mode has
  // to: zero3 each time (into the share), the others at the last. Queued; overlaps what follows.
  void reduce(size_t part, bool last);
  // All reductions are done when the current stream gets here: share(p).grad holds the step's sum.
  void finish_reductions();
  void zero_gradients();

  // ---- this rank's share. Gathers that read it are waited for, so it may be written; then
  // publish().
  Share& share(size_t part);
  // After masters were written (an update, a load): makes the compute copies right. `copied`:
  // share(part).copy was written beside the master. Gathers under zero1, beside what follows.
  void publish(size_t part, bool copied = false);
  // Whether a rank's shares are parts of the whole.
  bool shares_are_partial() const { return options().sharding != Sharding::kNone; }
  // Whether this rank is the first of those with its shares: what such ranks have, added up over
  // all ranks, is the whole's (squared norms).
  bool is_first_holder() const;

  // ---- whole parts, one at a time, for files: `flat` (num_elements or more), any floating dtype
  // and device, the same on every rank. Masters where there are any (in their own precision), and
  // compute copies.
  void set_whole(size_t part, const at::Tensor& flat);
  // Masters where there are any, else compute copies; fp32 (fp64), on the device. A collective
  // where sharded. Not to be written: it may be the master itself.
  at::Tensor whole(size_t part);

  // Counts waiting for gathers and reductions; null: nobody counts.
  void set_clock(StepClock* clock);

  // Bytes of tensors on the device.
  struct Bytes {
    int64_t masters = 0, copies = 0, gradients = 0, buffers = 0;
    int64_t all() const { return masters + copies + gradients + buffers; }
    bool operator==(const Bytes&) const = default;
  };
  // That this object holds right now.
  Bytes bytes() const;
  // The same from layouts alone, for the memory plan (planning/parameter_sizes.cpp); `trained`: by
  // part, whether something of it trains (empty: nothing does, or train() has not been called).
  static Bytes planned_bytes(const std::vector<LayoutPtr>& layouts, const Options& options,
                             int num_ranks, const std::vector<bool>& trained);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sala
