// Choosing windows behind data/eval_rows.h.
#include "data/eval_rows.h"

#include <algorithm>
#include <stdexcept>

#include "data/shuffle.h"

namespace sala {
namespace {

// The `wanted` elements of `from` spread evenly, beginning within the first gap as the seed says.
template <class T>
std::vector<T> spread(const std::vector<T>& from, std::int64_t wanted, std::uint64_t seed) {
  const auto size = static_cast<std::int64_t>(from.size());
  if (wanted >= size) return from;
  const auto shift = static_cast<std::int64_t>(counter_random_below(
      seed, 0, static_cast<std::uint64_t>(std::max<std::int64_t>(1, size / wanted))));
  std::vector<T> chosen;
  for (std::int64_t i = 0; i < wanted; ++i) chosen.push_back(from[i * size / wanted + shift]);
  return chosen;
}

// Window number `pass` of a document: windows lie end to end, moved together within the slack, and
// are visited from a start that the seed gives.
Piece window(std::int64_t document, std::int64_t length, std::int64_t row_length, std::int64_t pass,
             std::uint64_t seed) {
  const std::int64_t count = length / row_length;
  const auto draw = [&](std::uint64_t n, std::int64_t limit) {
    return static_cast<std::int64_t>(
        counter_random_below(counter_random(seed, static_cast<std::uint64_t>(document)), n, limit));
  };
  const std::int64_t slack = length - count * row_length;
  const std::int64_t offset = (draw(0, count) + pass) % count * row_length + draw(1, slack + 1);
  return {0, document, offset, row_length, offset + row_length == length};
}

std::vector<RowPlan> pack_short(const Source& source, const std::vector<std::int64_t>& documents,
                                std::int64_t row_length, std::int64_t num_rows) {
  std::vector<RowPlan> rows;
  std::int64_t room = 0;
  for (const std::int64_t document : documents) {
    const std::int64_t length = source.document_length(document);
    if (length > room) {
      if (static_cast<std::int64_t>(rows.size()) == num_rows) break;
      rows.emplace_back();
      room = row_length;
    }
    rows.back().push_back({0, document, 0, length, true});
    room -= length;
  }
  return rows;
}

}  // namespace

std::vector<RowPlan> plan_eval_rows(const Source& source, std::int64_t row_length,
                                    std::int64_t num_rows, std::uint64_t seed) {
  if (row_length < 1 || num_rows < 1) {
    throw std::runtime_error("data: held-out rows need a length and a number of 1 or more, found " +
                             std::to_string(row_length) + " and " + std::to_string(num_rows));
  }
  std::vector<std::int64_t> long_documents, short_documents;
  std::int64_t most_windows = 0;
  for (std::int64_t d = 0; d < source.num_documents(); ++d) {
    const std::int64_t windows = source.document_length(d) / row_length;
    (windows > 0 ? long_documents : short_documents).push_back(d);
    most_windows = std::max(most_windows, windows);
  }
  std::vector<RowPlan> rows;
  const auto missing = [&] { return num_rows - static_cast<std::int64_t>(rows.size()); };
  for (std::int64_t pass = 0; pass < most_windows && missing() > 0; ++pass) {
    std::vector<std::int64_t> candidates;
    for (const std::int64_t d : long_documents) {
      if (source.document_length(d) / row_length > pass) candidates.push_back(d);
    }
    for (const std::int64_t d : spread(candidates, missing(), seed)) {
      rows.push_back({window(d, source.document_length(d), row_length, pass, seed)});
    }
  }
  if (missing() > 0) {
    const auto more = pack_short(source, short_documents, row_length, missing());
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

std::vector<Row> eval_rows(const std::vector<std::string>& files,
                           const TokenizerIdentity& tokenizer, std::int64_t row_length,
                           std::int64_t num_rows, std::uint64_t seed) {
  std::vector<Source> sources;
  sources.emplace_back(SourceSpec{"held-out", files, 1.0}, tokenizer);
  std::vector<Row> rows;
  for (const RowPlan& plan : plan_eval_rows(sources[0], row_length, num_rows, seed)) {
    rows.push_back(read_row(sources, plan));
  }
  return rows;
}

}  // namespace sala
