// Document boundaries of packed tokens, on the host and on the device of the tokens.

#include "kernels/documents.h"

#include <algorithm>
#include <limits>

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
  std::vector<int32_t> narrow(docs.offsets.size());
  for (size_t i = 0; i < docs.offsets.size(); ++i) {
    narrow[i] = static_cast<int32_t>(docs.offsets[i]);
    if (i == 0) continue;
    const int64_t length = docs.offsets[i] - docs.offsets[i - 1];
    TORCH_CHECK(length > 0, "documents: expected starts to rise and to lie below ", num_tokens,
                " tokens, got a document from ", docs.offsets[i - 1], " to ", docs.offsets[i]);
    docs.longest = std::max(docs.longest, length);
  }
  docs.offsets_i32 = at::tensor(narrow, at::kInt).to(device);
  return docs;
}

Documents Documents::single(int64_t num_tokens, at::Device device) {
  return from_starts({0}, num_tokens, device);
}

}  // namespace sala
