// Windows of documents with repeated spans or planted facts.
#include "trainer/scores/rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "data/eval_rows.h"
#include "data/files/hash.h"

namespace sala {

namespace {

// [from, from + count) of a mask becomes `value`.
void mark(at::Tensor& mask, int64_t from, int64_t count, double value) {
  mask.narrow(0, from, count).fill_(value);
}

ScoreRow start_row(std::vector<int64_t> ids) {
  const auto T = static_cast<int64_t>(ids.size());
  return {std::move(ids), at::zeros({T}, at::kDouble), at::zeros({T}, at::kDouble),
          std::vector<int64_t>(static_cast<size_t>(T), -1)};
}

}  // namespace

ScoreRow repeated_span(std::vector<int64_t> ids, int64_t span, const std::string& salt) {
  const int64_t plain = static_cast<int64_t>(ids.size()) - span;
  const auto start = static_cast<int64_t>(xxh3_64(salt) % static_cast<uint64_t>(plain - span + 1));
  std::copy_n(ids.begin() + start, span, ids.begin() + plain);
  ScoreRow row = start_row(std::move(ids));
  std::iota(row.source.begin() + plain, row.source.end(), start);
  mark(row.plain, 0, plain - 1, 1);
  mark(row.recall, plain, span - 1, 1);
  return row;
}

ScoreRow planted_facts(std::vector<int64_t> ids, int64_t span, const std::string& salt) {
  const int64_t num_facts = span / kFactTokens;
  const int64_t plain = static_cast<int64_t>(ids.size()) - num_facts * kFactTokens;
  std::mt19937_64 random(xxh3_64(salt));
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  std::vector<int64_t> different(ids.begin(), ids.begin() + plain);
  std::sort(different.begin(), different.end());
  different.erase(std::unique(different.begin(), different.end()), different.end());

  std::vector<int64_t> places;  // first token of each fact
  const int64_t piece = plain / num_facts;
  for (int64_t f = 0; f < num_facts; ++f) {
    places.push_back(f * piece + below(piece - kFactTokens + 1));
    for (int64_t i = 0; i < kFactTokens; ++i) {
      ids[places.back() + i] = different[below(static_cast<int64_t>(different.size()))];
    }
  }
  ScoreRow row = start_row(std::move(ids));
  mark(row.plain, 0, plain - 1, 1);
  for (const int64_t place : places) {  // predicted from one position before
    mark(row.plain, std::max<int64_t>(place - 1, 0), kFactTokens - (place == 0), 0);
  }
  for (int64_t left = num_facts; left > 0; --left) {
    std::swap(places[below(left)], places[left - 1]);
    const int64_t place = places[left - 1], asked = plain + (num_facts - left) * kFactTokens;
    std::copy_n(row.ids.begin() + place, kFactTokens, row.ids.begin() + asked);
    std::iota(row.source.begin() + asked, row.source.begin() + asked + kFactTokens, place);
    mark(row.recall, asked + kKeyTokens - 1, kAnswerTokens, 1);
  }
  return row;
}

std::vector<ScoreRow> read_score_rows(const Run& run, const ScoreOptions& options,
                                      const std::string& stage) {
  const auto seed = static_cast<uint64_t>(run.recipe.run.seed);
  double total = 0;
  for (const auto& [_, weight] : options.data) total += weight;
  std::vector<ScoreRow> rows;
  for (const auto& [source, weight] : options.data) {
    const int64_t wanted = std::llround(static_cast<double>(options.documents) * weight / total);
    const auto files = expand_globs(run.recipe.data.sources.at(source).files);
    for (const Row& row : eval_rows(files, run.tokenizer, options.row_length,
                                    std::max<int64_t>(wanted, 1), seed, *run.stores)) {
      const bool whole = static_cast<int64_t>(row.ids.size()) == options.row_length;
      const bool room = static_cast<int64_t>(rows.size()) < options.documents;
      if (!whole || row.doc_starts.size() != 1 || !room) continue;
      const std::string salt = fmt::format("{}/{}", seed, rows.size());
      std::vector<int64_t> ids(row.ids.begin(), row.ids.end());
      rows.push_back(options.method == "kl"
                         ? repeated_span(std::move(ids), options.recall_span, salt)
                         : planted_facts(std::move(ids), options.recall_span, salt));
    }
  }
  if (rows.empty()) {
    throw std::runtime_error(
        fmt::format("stage {}: no document has {} tokens; use a smaller row_length or longer "
                    "documents",
                    stage, options.row_length));
  }
  return rows;
}

std::string hash_of_rows(const std::vector<ScoreRow>& rows) {
  Xxh3Stream stream(Xxh3Width::k64);
  for (const ScoreRow& row : rows) {
    stream.update(row.ids.data(), row.ids.size() * sizeof(row.ids[0]));
  }
  return stream.hex();
}

std::string hash_of_mixers(Run& run) {
  Xxh3Stream stream(Xxh3Width::k64);
  for (size_t l = 0; l < run.aligned->num_parts(); ++l) {
    const at::Tensor cpu = run.aligned->whole(l).cpu();
    stream.update(cpu.const_data_ptr<float>(), cpu.numel() * sizeof(float));
  }
  return stream.hex();
}

}  // namespace sala
