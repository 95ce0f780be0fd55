// Document boundaries of packed tokens, on the host and on the device of the tokens.

#include "kernels/documents.h"

#include <algorithm>
#include <limits>

#include "kernels/to_device.h"

namespace sala {

Documents Documents::from_starts(const std::vector<int64_t>& starts, int64_t num_tokens,
                                 at::Device device) {
  TORCH_CHECK(!starts.empty() && starts.front() == 0,
              "documents: expected the first document to start at token 0, got ",
              starts.empty() ? std::string("no document") : std::to_string(starts.front()));
  TORCH_CHECK(num_tokens <= std::numeric_limits<int32_t>::max(),
              "documents: expected fewer than 2^31 packed tokens, got ", num_tokens);
  Documents docs;
  docs.offsets = starts;
  docs.offsets.push_back(num_tokens);
  // One host tensor for both arrays: one copy.
  const int64_t count = static_cast<int64_t>(docs.offsets.size());
  at::Tensor host = at::empty({2, count}, at::kInt);
  int32_t *offsets = host.data_ptr<int32_t>(), *tiles = offsets + count;
  offsets[0] = tiles[0] = 0;
  for (int64_t i = 1; i < count; ++i) {
    const int64_t length = docs.length(i - 1);
    TORCH_CHECK(length > 0, "documents: expected starts to rise and to lie below ", num_tokens,
                " tokens, got a document from ", docs.offsets[i - 1], " to ", docs.offsets[i]);
    docs.longest = std::max(docs.longest, length);
    docs.num_tiles += (length + kTileTokens - 1) / kTileTokens;
    offsets[i] = static_cast<int32_t>(docs.offsets[i]);
    tiles[i] = static_cast<int32_t>(docs.num_tiles);
  }
  const at::Tensor both = queue_to(host, device);
  docs.offsets_i32 = both[0];
  docs.tiles_i32 = both[1];
  return docs;
}

Documents Documents::single(int64_t num_tokens, at::Device device) {
  return from_starts({0}, num_tokens, device);
}

}  // namespace sala
