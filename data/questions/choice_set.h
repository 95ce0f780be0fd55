// Multiple-choice questions, answered by likelihood. The set is a JSON file written by
// data/prepare:
//   {"format": "sala-choices", "tokenizer_hash": hex, "vocab_size": V,
//    "items": [{"task": "...", "answer": i, "contexts": [[ids], ...], "choices": [[ids], ...],
//               "choice_chars": [n, ...]}]}
// contexts[i] goes with choices[i]: what is scored is log p(choice | context).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/packing.h"
#include "data/stores/token_store.h"

namespace sala {

struct Choice {
  std::vector<std::int32_t> context, choice;  // at least one id each
  std::int64_t num_chars = 1;                 // of the choice's text, less the space before it
};

struct ChoiceQuestion {
  std::string task;
  std::int64_t answer = 0;
  std::vector<Choice> choices;  // two or more
};

class ChoiceSet {
 public:
  // Errors (missing, no JSON, wrong tokenizer, id out of range, no such answer):
  // std::runtime_error with one line that names the file and the item.
  explicit ChoiceSet(const std::string& path, const TokenizerIdentity& expected = {});

  std::int64_t size() const { return static_cast<std::int64_t>(questions_.size()); }
  const ChoiceQuestion& operator[](std::int64_t index) const { return questions_[index]; }
  // Tasks in the order of their names, and at most `most` questions of each: which ones, `seed`
  // says; in the order of the file.
  std::vector<std::string> tasks() const;
  std::vector<std::int64_t> questions_of(const std::string& task, std::int64_t most,
                                         std::uint64_t seed) const;
  std::int64_t longest_document() const;  // ids of a context and its choice, at most

 private:
  std::string path_;
  std::vector<ChoiceQuestion> questions_;
};

// The file's name without folder and ending, by which recipes and results call the set.
std::string choice_set_name(const std::string& path);

// A context and its choice as one document, in which the choice's ids are the targets: loss_weight
// 1 at the tokens that predict them. The last id predicts nothing and is left out.
Row choice_row(const Choice& choice);

// What one question's choices came to: which is likeliest, by log-likelihood and by
// log-likelihood per character; the first among equals. As lm-evaluation-harness's multiple_choice
// computes acc and acc_norm (argmax of lls, and of lls / len(choice)).
struct ChoicePicks {
  std::int64_t by_sum = 0, by_char = 0;
};
ChoicePicks pick_choices(const ChoiceQuestion& question,
                         const std::vector<double>& log_likelihoods);

}  // namespace sala
