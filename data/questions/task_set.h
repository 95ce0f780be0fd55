// Prompts whose greedy answers are searched for references: tasks in the form of RULER (Hsieh et
// al. 2024, arXiv:2404.06654), written by `data/prepare ruler` as one HDF5 file:
//
//   tokens              u16 or u32 (N): ids of the prompts, end to end
//   prompt_offsets      i64 (P + 1): first token of each prompt, last N
//   index               u8: JSON {"stop_ids": [ids], "prompts": [{"task", "length", "match": "all"
//   |
//                       "part", "max_new_tokens", "references": ["..."], "xxh3": hex of the ids'
//                       bytes as stored}, ...]}
//   vocabulary          u8: bytes of every id's text, end to end; special tokens have none
//   vocabulary_offsets  i64 (ids + 1)
//   attributes          format, vocab_size, tokenizer_hash, special_tokens, num_prompts,
//                       num_tokens, xxh3 (XXH3-64 of the datasets but tokens, as listed)
//
// Errors: std::runtime_error with one line that names the file, and the prompt where one applies.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/files/hdf5_file.h"
#include "data/stores/token_store.h"

namespace sala {

struct TaskPrompt {
  std::string task;
  std::int64_t length = 0;              // prompt and answer have room in so many tokens
  std::int64_t num_tokens = 0;          // of the prompt; at most length - max_new_tokens
  std::int64_t max_new_tokens = 0;      // room for the answer
  bool match_all = true;                // score: share of references found; else: whether any is
  std::vector<std::string> references;  // printable ASCII, not empty
  std::string checksum;                 // of its ids
};

class TaskSet {
 public:
  // Opens and checks everything but the prompts' ids, which ids() reads and checks.
  explicit TaskSet(const std::string& path, const TokenizerIdentity& expected = {});

  std::int64_t size() const { return static_cast<std::int64_t>(prompts_.size()); }
  const TaskPrompt& operator[](std::int64_t index) const { return prompts_[index]; }
  const std::vector<std::int64_t>& stop_ids() const { return stop_ids_; }
  std::vector<std::int64_t> ids(std::int64_t index) const;
  // What these ids say, special tokens left out; ids beyond the tokenizer's are nothing.
  std::string text(const std::vector<std::int64_t>& ids) const;

  std::vector<std::string> tasks() const;                // in the order of the file
  std::map<std::int64_t, std::int64_t> lengths() const;  // length: its prompts
  // At most `most` prompts of this task and length: which ones, `seed` says; in the file's order.
  std::vector<std::int64_t> prompts_of(const std::string& task, std::int64_t length,
                                       std::int64_t most, std::uint64_t seed) const;

 private:
  [[noreturn]] void fail(const std::string& what) const;
  void check_head(const TokenizerIdentity& expected);
  void check_sizes() const;
  void verify_checksum() const;
  void read_index();
  void read_offsets(const char* name, std::int64_t total, std::vector<std::int64_t>& out) const;

  Hdf5File file_;
  std::int64_t vocab_size_ = 0, num_prompts_ = 0, num_tokens_ = 0;
  Hdf5Type token_type_ = Hdf5Type::kU16;
  std::vector<TaskPrompt> prompts_;
  std::vector<std::int64_t> stop_ids_, prompt_offsets_, vocabulary_offsets_;
  std::vector<std::uint8_t> vocabulary_;
};

// 0 to 1. RULER's string_match_all and string_match_part: references that are found in the answer,
// small and capital letters alike, control characters taken as line ends.
double answer_score(const TaskPrompt& prompt, std::string answer);

}  // namespace sala
