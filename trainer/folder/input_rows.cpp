// Reading and checking ids.
#include "trainer/folder/input_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "data/files/input_file.h"

namespace sala {

namespace {

constexpr int64_t kMostIdsBytes = 1'000'000'000;

}  // namespace

InputRows read_ids(const std::string& path, int64_t vocab_size) {
  InputRows rows;
  try {
    rows = read_json_file(path, kMostIdsBytes).get<InputRows>();
  } catch (const nlohmann::json::exception&) {
    throw std::runtime_error(path + ": expected JSON rows of token ids, [[1, 2, 3], [4, 5, 6]]");
  }
  for (size_t b = 0; b < rows.size(); ++b) {
    if (rows[b].empty()) throw std::runtime_error(fmt::format("{}: row {} is empty", path, b));
    for (size_t t = 0; t < rows[b].size(); ++t) {
      if (rows[b][t] < 0 || rows[b][t] >= vocab_size) {
        throw std::runtime_error(
            fmt::format("{}: row {}, position {}: id {} is outside the "
                        "vocabulary [0, {})",
                        path, b, t, rows[b][t], vocab_size));
      }
    }
  }
  if (rows.empty()) throw std::runtime_error(path + ": no rows");
  return rows;
}

std::vector<int64_t> read_document(const std::string& path, const TokenizerIdentity& tokenizer,
                                   int64_t count) {
  const TokenStore store(path, tokenizer);
  const std::vector<int64_t> offsets = store.read_offsets();
  int64_t longest = 0;
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    const int64_t length = offsets[d + 1] - offsets[d];
    longest = std::max(longest, length);
    if (length < count) continue;
    const std::vector<int32_t> ids = store.read(offsets[d], count);
    return {ids.begin(), ids.end()};
  }
  throw std::runtime_error(
      fmt::format("{}: has no document of {} tokens; its longest has {}", path, count, longest));
}

}  // namespace sala
