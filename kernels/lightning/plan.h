// How packed documents are cut for lightning attention. A chunk is up to kLightningChunk tokens of
// one document; a segment is a handful of chunks, worked on at once. Inside a chunk
// attention is a masked product; between the chunks of a segment states move by one matrix of
// decays per head; between segments a carried state moves. Decays depend on token distances only,
// so everything here is host arithmetic on document offsets.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "kernels/documents.h"

namespace sala {

constexpr int64_t kLightningChunk = 64;
constexpr int64_t kLightningSegmentCpu = 8;    // temporaries stay near the caches
constexpr int64_t kLightningSegmentCuda = 64;  // few launches: 4096 tokens at once

struct LightningChunk {
  int64_t begin, end;  // packed tokens
  int64_t doc;
};

struct LightningSegment {
  std::vector<LightningChunk> chunks;
  int64_t begin = 0, end = 0;           // packed tokens
  int64_t first_doc = 0, last_doc = 0;  // documents it touches, both included
  bool continues_in = false;            // first_doc began in an earlier segment
  bool continues_out = false;           // last_doc goes on in the next segment
  at::Tensor
      slot;  // (end - begin) int64: row of each token once chunks are padded; undefined: no padding

  int64_t num_chunks() const { return static_cast<int64_t>(chunks.size()); }
  int64_t num_tokens() const { return end - begin; }
  int64_t num_docs() const { return last_doc - first_doc + 1; }
};

struct LightningPlan {
  int64_t chunk = 0;  // C: tokens of a padded chunk
  std::vector<LightningSegment> segments;
};

LightningPlan plan_lightning(const Documents& docs, at::Device device);

// Places where states enter and leave a segment besides its chunks: the documents
// [first, first + count), each at its first or after its last token within the segment.
struct LightningPorts {
  int64_t first = 0, count = 0;
};
// A run of a link's rows.
struct LightningRows {
  int64_t first = 0, count = 0;
};

// Weights below e^-60 are taken for 0.
constexpr double kDeadExponent = 60;

// exp(-slope * distance), (NH, ...) in `dtype` on the device of `slopes` (NH) fp64. `distance` fp64
// of any shape, never negative; infinity gives 0. Dead weights are set to 0, which no precision
// here can see and which keeps denormals out of the products.
at::Tensor decay_weights(const at::Tensor& slopes, const at::Tensor& distance,
                         at::ScalarType dtype);

// Distances (n + outs, n + ins) in tokens: rows are the starts of the n chunks, then where
// documents leave; columns the ends of the chunks, then where documents enter. Infinite where
// nothing flows (another document, or later).
at::Tensor link_distance(const LightningSegment& segment, const Documents& docs,
                         const LightningPorts& ins, const LightningPorts& outs);

// Distances (n, C) from each token of a padded chunk to the chunk's last token; 0 in the padding.
at::Tensor tail_distance(const LightningSegment& segment, int64_t chunk);

}  // namespace sala
