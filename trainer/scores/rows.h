// The rows that layers are scored on: a window of one document each, changed so that its end can
// only be predicted by recall.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/run.h"
#include "trainer/scores/options.h"

namespace sala {

// A fact: kKeyTokens of key and kAnswerTokens of answer.
inline constexpr int64_t kKeyTokens = 4, kAnswerTokens = 4;
inline constexpr int64_t kFactTokens = kKeyTokens + kAnswerTokens;

// Position t predicts token t + 1.
struct ScoreRow {
  std::vector<int64_t> ids;     // (T)
  at::Tensor plain, recall;     // (T) fp64 on the CPU, 0 or 1: the prediction at t counts as one of
                                // plain text, as one of recall
  std::vector<int64_t> source;  // (T) where the end's tokens were copied from; -1: the others
};

// The last `span` tokens of `ids` (T) replaced by a copy of an earlier span. Its first token cannot
// be recalled, and counts nowhere.
ScoreRow repeated_span(std::vector<int64_t> ids, int64_t span, const std::string& salt);

// span / kFactTokens facts, one in each equal piece of the row, of tokens drawn evenly from the
// row's own different ones; at the end of the row all of them again, in another order. Answers that
// are asked again count as recall; what is no token of a fact counts as plain text.
ScoreRow planted_facts(std::vector<int64_t> ids, int64_t span, const std::string& salt);

// All rows of a stage: of each source its share, whole rows from single documents, at most
// options.documents, fewer where the data has no more. Throws where there is none.
std::vector<ScoreRow> read_score_rows(const Run& run, const ScoreOptions& options,
                                      const std::string& stage);
std::string hash_of_rows(const std::vector<ScoreRow>& rows);
// Of the masters of all aligned mixers. A collective.
std::string hash_of_mixers(Run& run);

}  // namespace sala
