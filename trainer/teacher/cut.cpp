// From rows to places in the cache, and from micro-batches to rows.
#include "trainer/teacher/cut.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/to_device.h"
#include "model/forward.h"

namespace sala {

namespace {

// The first place at which `a` and `b` differ; their size where they do not.
size_t first_difference(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

}  // namespace

void CutTeacher::begin_step(const StepRows& rows) {
  next_ = 0;
  if (!cache_) return;
  const auto rows_per_step = static_cast<int64_t>(rows.plans.size());
  const int64_t first_row = rows.first_row_of_stage;
  step_ = {};
  step_.begin = (first_row + rows.first_row) * row_length_;
  for (const Row& row : rows.rows) {
    step_.ids.insert(step_.ids.end(), row.ids.begin(), row.ids.end());
    step_.position.insert(step_.position.end(), row.position.begin(), row.position.end());
  }
  // Of the whole step, so that all ranks come to the same.
  const int64_t step_tokens = rows_per_step * row_length_;
  is_cached_ = cache_->covers(first_row * row_length_, first_row * row_length_ + step_tokens);
  if (!is_cached_ && network_) return;
  world_.together("teacher cache", [&] {
    if (!is_cached_) {
      throw std::runtime_error(fmt::format(
          "it has all rows that the stage's tokens make, but this step reads up to row {}: the run "
          "came from inside the stage with other batch_tokens; name another folder, or none",
          first_row + rows_per_step));
    }
    if (step_.count() > 0) read_step(step_.begin + step_tokens);
  });
}

void CutTeacher::read_step(int64_t next) {
  TopkTokens found = cache_->read(step_.begin, step_.begin + step_.count(), next);
  const size_t at = std::min(first_difference(step_.ids, found.ids),
                             first_difference(step_.position, found.position));
  if (at < step_.ids.size()) {
    throw std::runtime_error(fmt::format(
        "the cache was filled from other rows: token {} of row {} of the stage is id {} at place "
        "{} of its document's part of the row, there id {} at place {}. The stages before this one "
        "decide where its rows begin in the data: read as much in them as that run did, or name "
        "another folder",
        (step_.begin + static_cast<int64_t>(at)) % row_length_,
        (step_.begin + static_cast<int64_t>(at)) / row_length_, step_.ids[at], step_.position[at],
        found.ids[at], found.position[at]));
  }
  step_ = std::move(found);
}

TopkTeacher CutTeacher::of(const Batch& batch) {
  const int64_t count = batch.num_tokens();
  const at::Device device = batch.ids.device();
  if (batch.idle) return unpack(is_cached_ ? of_idle(count, device) : ask(batch));
  const int64_t first = next_ + (batch.shard ? batch.shard->begin() : 0);
  next_ += batch.shard ? batch.shard->whole.num_tokens() : count;
  if (is_cached_) return unpack(cached(first, count, device));
  PackedTopk packed = ask(batch);
  if (cache_) asked_.push_back({first, packed});
  return unpack(packed);
}

PackedTopk CutTeacher::ask(const Batch& batch) const {
  const Model& model = network_->model;
  const at::Tensor x = hidden(model, network_->parameters, model.env(batch, /*sparse=*/false));
  const Lease head = network_->parameters.lease(model.head_parts());
  return pack(linear_topk(x, model.head_weight(head), model.config().logit_scale, temperature_,
                          format_.topk),
              format_);
}

PackedTopk CutTeacher::cached(int64_t first, int64_t count, at::Device device) const {
  const auto part = [&](const at::Tensor& x) {
    return queue_to(x.narrow(0, first, count), device);
  };
  return {part(step_.top_ids), part(step_.log_p), part(step_.log_tail)};
}

// Tokens without weight: any distribution does that leaves no KL infinite.
PackedTopk CutTeacher::of_idle(int64_t count, at::Device device) const {
  const auto options = at::TensorOptions().device(device);
  const int64_t k = format_.topk;
  const bool whole = k == format_.vocab_size;  // where nothing is left for the tail
  const double log_p = -std::log(static_cast<double>(whole ? k : k + 1));
  const double log_tail = whole ? -std::numeric_limits<double>::infinity() : log_p;
  const at::Tensor ids = at::arange(k, options.dtype(at::kLong)).expand({count, k}).contiguous();
  return {ids.to(format_.wide_ids() ? at::kInt : at::kShort),
          at::full({count, k}, log_p, options.dtype(format_.half ? at::kHalf : at::kFloat)),
          at::full({count}, log_tail, options.dtype(at::kFloat))};
}

// Its tokens have no weight in any run of the same stores.
void CutTeacher::pass_over(const StepRows& rows) {
  if (!cache_) return;
  begin_step(rows);
  if (is_cached_) return;
  if (step_.count() > 0) asked_.push_back({0, of_idle(step_.count(), at::kCPU)});
  end_step();
}

void CutTeacher::end_step() {
  if (!cache_ || is_cached_) return;
  world_.together("teacher cache", [&] {
    for (const auto& [first, packed] : asked_) {
      const auto begin = static_cast<size_t>(first);
      const auto end = begin + static_cast<size_t>(packed.log_tail.size(0));
      const auto cut = [&](const std::vector<int32_t>& x) {
        return std::vector<int32_t>(x.begin() + begin, x.begin() + end);
      };
      cache_->add({step_.begin + first, cut(step_.ids), cut(step_.position), packed.ids.cpu(),
                   packed.log_p.cpu(), packed.log_tail.cpu()});
    }
  });
  asked_.clear();
}

}  // namespace sala
