// Chunks, segments and token distances of lightning attention.

#include "kernels/lightning/plan.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace sala {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

void close_segment(LightningSegment& segment, const Documents& docs, int64_t chunk,
                   at::Device device) {
  segment.begin = segment.chunks.front().begin;
  segment.end = segment.chunks.back().end;
  segment.first_doc = segment.chunks.front().doc;
  segment.last_doc = segment.chunks.back().doc;
  segment.continues_in = segment.begin > docs.offsets[segment.first_doc];
  segment.continues_out = segment.end < docs.offsets[segment.last_doc + 1];
  if (segment.num_tokens() == segment.num_chunks() * chunk) return;
  std::vector<int64_t> slot;
  slot.reserve(segment.num_tokens());
  for (int64_t c = 0; c < segment.num_chunks(); ++c) {
    const int64_t length = segment.chunks[c].end - segment.chunks[c].begin;
    for (int64_t i = 0; i < length; ++i) slot.push_back(c * chunk + i);
  }
  segment.slot = at::tensor(slot, at::kLong).to(device);
}

struct Port {
  int64_t position, doc;
};

}  // namespace

LightningPlan plan_lightning(const Documents& docs, at::Device device) {
  LightningPlan plan;
  plan.chunk = std::min(kLightningChunk, docs.longest);
  const int64_t most = device.is_cuda() ? kLightningSegmentCuda : kLightningSegmentCpu;
  LightningSegment segment;
  for (int64_t d = 0; d < docs.count(); ++d) {
    for (int64_t t = docs.offsets[d]; t < docs.offsets[d + 1]; t += plan.chunk) {
      if (segment.num_chunks() == most) {
        close_segment(segment, docs, plan.chunk, device);
        plan.segments.push_back(std::exchange(segment, {}));
      }
      segment.chunks.push_back({t, std::min(t + plan.chunk, docs.offsets[d + 1]), d});
    }
  }
  close_segment(segment, docs, plan.chunk, device);
  plan.segments.push_back(std::move(segment));
  return plan;
}

at::Tensor decay_weights(const at::Tensor& slopes, const at::Tensor& distance,
                         at::ScalarType dtype) {
  std::vector<int64_t> per_head(distance.dim() + 1, 1);
  per_head[0] = slopes.size(0);
  const at::Tensor exponent = slopes.view(per_head) * distance.to(slopes.device()).unsqueeze(0);
  // "Not at most": where the slope is zero an infinite distance makes no number.
  return exponent.neg().exp_().masked_fill_(exponent.le(kDeadExponent).logical_not_(), 0).to(dtype);
}

at::Tensor link_distance(const LightningSegment& segment, const Documents& docs,
                         const LightningPorts& ins, const LightningPorts& outs) {
  std::vector<Port> from, to;
  for (const LightningChunk& chunk : segment.chunks) {
    to.push_back({chunk.begin, chunk.doc});
    from.push_back({chunk.end, chunk.doc});
  }
  for (int64_t d = outs.first; d < outs.first + outs.count; ++d) {
    to.push_back({std::min(docs.offsets[d + 1], segment.end), d});
  }
  for (int64_t d = ins.first; d < ins.first + ins.count; ++d) {
    from.push_back({std::max(docs.offsets[d], segment.begin), d});
  }
  at::Tensor distance =
      at::empty({static_cast<int64_t>(to.size()), static_cast<int64_t>(from.size())}, at::kDouble);
  double* out = distance.data_ptr<double>();
  for (const Port& row : to) {
    for (const Port& column : from) {
      const bool flows = row.doc == column.doc && column.position <= row.position;
      *out++ = flows ? static_cast<double>(row.position - column.position) : kNever;
    }
  }
  return distance;
}

at::Tensor tail_distance(const LightningSegment& segment, int64_t chunk) {
  at::Tensor distance = at::empty({segment.num_chunks(), chunk}, at::kDouble);
  double* out = distance.data_ptr<double>();
  for (const LightningChunk& c : segment.chunks) {
    for (int64_t i = 0; i < chunk; ++i) {
      *out++ = static_cast<double>(std::max<int64_t>(c.end - c.begin - 1 - i, 0));
    }
  }
  return distance;
}

}  // namespace sala
