// Choosing windows behind data/eval_rows.h.
#include "data/eval_rows.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "data/shuffle.h"

namespace sala {
namespace {

// Which `wanted` of `size` things: spread evenly, beginning within the first gap as the seed says.
std::vector<std::int64_t> spread(std::int64_t size, std::int64_t wanted, std::uint64_t seed) {
  std::vector<std::int64_t> chosen;
  if (wanted >= size) {
    for (std::int64_t i = 0; i < size; ++i) chosen.push_back(i);
    return chosen;
  }
  const auto shift = static_cast<std::int64_t>(counter_random_below(
      seed, 0, static_cast<std::uint64_t>(std::max<std::int64_t>(1, size / wanted))));
  for (std::int64_t i = 0; i < wanted; ++i) chosen.push_back(i * size / wanted + shift);
  return chosen;
}

// The documents that give window number `pass`, of those `spread` picks. A source may hold more
// documents than fit in memory: they are counted first, then picked as they pass by.
std::vector<std::pair<std::int64_t, std::int64_t>> documents_for_pass(const Source& source,
                                                                      std::int64_t row_length,
                                                                      std::int64_t pass,
                                                                      std::int64_t wanted,
                                                                      std::uint64_t seed) {
  std::int64_t size = 0;
  source.for_each_document([&](std::int64_t, std::int64_t length) {
    size += length / row_length > pass ? 1 : 0;
    return true;
  });
  const std::vector<std::int64_t> chosen = spread(size, wanted, seed);
  std::vector<std::pair<std::int64_t, std::int64_t>> found;  // document and its length
  std::int64_t candidate = 0;
  source.for_each_document([&](std::int64_t document, std::int64_t length) {
    if (found.size() == chosen.size()) return false;
    if (length / row_length <= pass) return true;
    if (candidate++ == chosen[found.size()]) found.emplace_back(document, length);
    return true;
  });
  return found;
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

std::vector<Source> held_out(const std::vector<std::string>& files,
                             const TokenizerIdentity& tokenizer, const StoreCatalog& catalog) {
  std::vector<Source> sources;
  sources.emplace_back(SourceSpec{"held-out", files, 1.0}, tokenizer, catalog);
  return sources;
}

std::vector<RowPlan> pack_short(const Source& source, std::int64_t row_length,
                                std::int64_t num_rows) {
  std::vector<RowPlan> rows;
  std::int64_t room = 0;
  source.for_each_document([&](std::int64_t document, std::int64_t length) {
    if (length >= row_length) return true;
    if (length > room) {
      if (static_cast<std::int64_t>(rows.size()) == num_rows) return false;
      rows.emplace_back();
      room = row_length;
    }
    rows.back().push_back({0, document, 0, length, true});
    room -= length;
    return true;
  });
  return rows;
}

}  // namespace

std::vector<RowPlan> plan_eval_rows(const Source& source, std::int64_t row_length,
                                    std::int64_t num_rows, std::uint64_t seed) {
  if (row_length < 1 || num_rows < 1) {
    throw std::runtime_error("data: held-out rows need a length and a number of 1 or more, found " +
                             std::to_string(row_length) + " and " + std::to_string(num_rows));
  }
  std::vector<RowPlan> rows;
  const auto missing = [&] { return num_rows - static_cast<std::int64_t>(rows.size()); };
  for (std::int64_t pass = 0; missing() > 0; ++pass) {
    const auto documents = documents_for_pass(source, row_length, pass, missing(), seed);
    if (documents.empty()) break;
    for (const auto& [document, length] : documents) {
      rows.push_back({window(document, length, row_length, pass, seed)});
    }
  }
  if (missing() > 0) {
    const auto more = pack_short(source, row_length, missing());
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

std::vector<Row> eval_rows(const std::vector<std::string>& files,
                           const TokenizerIdentity& tokenizer, std::int64_t row_length,
                           std::int64_t num_rows, std::uint64_t seed, const StoreCatalog& catalog) {
  const std::vector<Source> sources = held_out(files, tokenizer, catalog);
  std::vector<Row> rows;
  for (const RowPlan& plan : plan_eval_rows(sources[0], row_length, num_rows, seed)) {
    rows.push_back(read_row(sources, plan));
  }
  return rows;
}

}  // namespace sala
