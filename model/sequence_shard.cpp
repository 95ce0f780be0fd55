// Arithmetic on the borders of shards and the starts of documents.
#include "model/sequence_shard.h"

#include <algorithm>

namespace sala {

int64_t SequenceShard::longest() const {
  int64_t most = 0;
  for (int r = 0; r < comm->size(); ++r) most = std::max(most, num_tokens(r));
  return most;
}

int64_t SequenceShard::document_at(int64_t token) const {
  const auto after = std::upper_bound(whole.offsets.begin(), whole.offsets.end(), token);
  return after - whole.offsets.begin() - 1;
}

bool SequenceShard::is_crossed(int border) const {
  const int64_t token = borders[border];
  return !std::binary_search(whole.offsets.begin(), whole.offsets.end(), token);
}

bool SequenceShard::any_crossed() const {
  for (int r = 1; r < comm->size(); ++r) {
    if (is_crossed(r)) return true;
  }
  return false;
}

namespace {

// The line's documents that touch the shard, cut to [from, shard.end()).
Documents cut_documents(const SequenceShard& shard, int64_t from) {
  std::vector<int64_t> starts;
  for (int64_t d = shard.first_document();
       d < shard.whole.count() && shard.whole.offsets[d] < shard.end(); ++d) {
    starts.push_back(std::max(shard.whole.offsets[d], from) - from);
  }
  return Documents::from_starts(starts, shard.end() - from, shard.whole.offsets_i32.device());
}

}  // namespace

Documents SequenceShard::local_documents() const { return cut_documents(*this, begin()); }
Documents SequenceShard::key_documents() const { return cut_documents(*this, first_key()); }

std::vector<int64_t> shard_borders(int64_t num_tokens, int num_ranks) {
  TORCH_CHECK(num_tokens >= num_ranks, "a line of ", num_tokens, " tokens cannot be split over ",
              num_ranks, " ranks: each takes at least one token");
  std::vector<int64_t> borders;
  for (int64_t r = 0; r <= num_ranks; ++r) borders.push_back(num_tokens * r / num_ranks);
  return borders;
}

}  // namespace sala
