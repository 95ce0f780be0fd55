// Needle-in-a-haystack prompts: haystack tokens cut from a token store, a needle put in at a depth,
// its question at the end. The set of needles is a JSON file written by data/prepare, which has the
// tokenizer:
//   {"format": "sala-needles", "tokenizer_hash": hex, "vocab_size": V, "start": [ids],
//    "items": [{"needle": [ids], "question": [ids], "answer": [ids], "text": "..."}]}
// A hit is a greedy continuation that begins with exactly the answer ids.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/source.h"

namespace sala {

struct Needle {
  std::vector<std::int32_t> needle, question, answer;
  std::string text;  // for reports
};

struct NeedlePrompt {
  std::vector<std::int32_t> ids;     // (length) haystack with the needle inside, then the question
  std::vector<std::int32_t> answer;  // what greedy generation must give
  std::int64_t needle_start = 0;     // index in ids
};

class NeedleSet {
 public:
  // Errors (missing, no JSON, wrong tokenizer, empty lists, id out of range): std::runtime_error
  // with one line that names the file and the item.
  explicit NeedleSet(const std::string& path, const TokenizerIdentity& expected = {});

  std::int64_t size() const { return static_cast<std::int64_t>(items_.size()); }
  std::int64_t num_start() const { return static_cast<std::int64_t>(start_.size()); }  // ids
  const Needle& operator[](std::int64_t index) const { return items_[index]; }

  // Prompt number `index` (needle index mod size()) of `length` tokens in all, needle and question
  // included, after the ids that prompts start with (BOS, where the model has one). Haystack: whole
  // documents without such a start and without their EOS, end to end, from one that (seed, index)
  // picks; the same for every depth. The needle stands after round(depth_frac * haystack) tokens.
  NeedlePrompt prompt(const Source& haystack, std::int64_t length, double depth_frac,
                      std::int64_t index, std::uint64_t seed) const;

 private:
  std::string path_;
  std::string tokenizer_hash_;
  std::vector<std::int32_t> start_;
  std::vector<Needle> items_;
};

}  // namespace sala
