// Reading and building behind data/needles.h.
#include "data/needles.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/shuffle.h"

namespace sala {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

std::vector<std::int32_t> read_ids(const nlohmann::json& item, const char* key,
                                   std::int64_t vocab_size, const std::string& path,
                                   std::int64_t index) {
  const auto ids = item.at(key).get<std::vector<std::int64_t>>();
  const std::string where = "item " + std::to_string(index) + ", `" + key + "`: ";
  if (ids.empty()) fail(path, where + "expected token ids, found none; run data/prepare again");
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      fail(path, where + "id " + std::to_string(id) + " is outside the vocabulary of " +
                     std::to_string(vocab_size) + "; run data/prepare with the model's tokenizer");
    }
  }
  return {ids.begin(), ids.end()};
}

// `count` tokens of whole documents, without EOS, from document `first` on, around the end.
std::vector<std::int32_t> cut_haystack(const Source& source, std::int64_t first,
                                       std::int64_t count) {
  std::vector<std::int32_t> tokens;
  std::int64_t idle = 0;  // documents in a row that gave nothing
  for (std::int64_t d = first; static_cast<std::int64_t>(tokens.size()) < count; ++d) {
    const std::int64_t document = d % source.num_documents();
    const std::int64_t usable = source.document_length(document) - 1;
    const std::int64_t wanted = std::min(usable, count - static_cast<std::int64_t>(tokens.size()));
    idle = wanted == 0 ? idle + 1 : 0;
    if (idle > source.num_documents()) {
      throw std::runtime_error("source `" + source.name() +
                               "`: no text for a haystack, its documents hold EOS only");
    }
    const auto part = source.read(document, 0, wanted);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
  return tokens;
}

}  // namespace

NeedleSet::NeedleSet(const std::string& path, const TokenizerIdentity& expected) : path_(path) {
  const std::string text = read_text_file(path);
  try {
    const nlohmann::json set = nlohmann::json::parse(text);
    if (set.at("format") != "sala-needles") {
      fail(path, "expected `format` sala-needles; make the set with data/prepare");
    }
    tokenizer_hash_ = set.at("tokenizer_hash").get<std::string>();
    const auto vocab_size = set.at("vocab_size").get<std::int64_t>();
    if ((!expected.hash.empty() && expected.hash != tokenizer_hash_) ||
        (expected.vocab_size > 0 && vocab_size > expected.vocab_size)) {
      fail(path, "made with another tokenizer: expected tokenizer hash " + expected.hash +
                     ", found " + tokenizer_hash_ +
                     "; run data/prepare with the model's "
                     "tokenizer.json");
    }
    for (const auto& item : set.at("items")) {
      const std::int64_t index = size();
      items_.push_back({read_ids(item, "needle", vocab_size, path, index),
                        read_ids(item, "question", vocab_size, path, index),
                        read_ids(item, "answer", vocab_size, path, index), item.value("text", "")});
    }
  } catch (const nlohmann::json::exception& error) {
    fail(path, std::string("not a needle set (") + error.what() + "); make it with data/prepare");
  }
  if (items_.empty()) fail(path, "holds no needle; make the set with data/prepare");
}

NeedlePrompt NeedleSet::prompt(const Source& haystack, std::int64_t length, double depth_frac,
                               std::int64_t index, std::uint64_t seed) const {
  const Needle& item = items_[static_cast<size_t>(index % size())];
  const auto needle_size = static_cast<std::int64_t>(item.needle.size());
  const std::int64_t fixed = needle_size + static_cast<std::int64_t>(item.question.size());
  if (length <= fixed) {
    fail(path_, "a prompt of " + std::to_string(length) +
                    " tokens has no room for haystack: needle "
                    "and question of item " +
                    std::to_string(index % size()) + " take " + std::to_string(fixed) +
                    "; use longer prompts");
  }
  if (!(depth_frac >= 0 && depth_frac <= 1)) {
    fail(path_, "needle depth must be 0 to 1, found " + std::to_string(depth_frac));
  }
  if (haystack.tokenizer_hash() != tokenizer_hash_) {
    fail(path_, "made with another tokenizer (" + tokenizer_hash_ + ") than the haystack " +
                    haystack.first_path() + "; run data/prepare with one tokenizer.json");
  }
  const auto first = counter_random_below(seed, static_cast<std::uint64_t>(index),
                                          static_cast<std::uint64_t>(haystack.num_documents()));
  NeedlePrompt prompt;
  prompt.ids = cut_haystack(haystack, static_cast<std::int64_t>(first), length - fixed);
  prompt.needle_start = std::llround(depth_frac * static_cast<double>(prompt.ids.size()));
  prompt.ids.insert(prompt.ids.begin() + prompt.needle_start, item.needle.begin(),
                    item.needle.end());
  prompt.ids.insert(prompt.ids.end(), item.question.begin(), item.question.end());
  prompt.answer = item.answer;
  return prompt;
}

}  // namespace sala
