// Reading and building behind data/needles.h.
#include "data/needles.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/questions/item_file.h"
#include "data/shuffle.h"

namespace sala {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

// Adds `count` tokens to `tokens`: of whole documents, without the ids that they start with and
// without EOS, from document `first` on, around the end.
void add_haystack(std::vector<std::int32_t>& tokens, const Source& source, std::int64_t first,
                  std::int64_t count, const std::vector<std::int32_t>& start) {
  const auto skipped = static_cast<std::int64_t>(start.size());
  count += static_cast<std::int64_t>(tokens.size());
  std::int64_t idle = 0;  // documents in a row that gave nothing
  for (std::int64_t d = first; static_cast<std::int64_t>(tokens.size()) < count; ++d) {
    const std::int64_t document = d % source.num_documents();
    const std::int64_t length = source.document_length(document);
    const bool starts =
        skipped > 0 && length > skipped && source.read(document, 0, skipped) == start;
    const std::int64_t from = starts ? skipped : 0, usable = length - 1 - from;
    const std::int64_t wanted = std::min(usable, count - static_cast<std::int64_t>(tokens.size()));
    idle = wanted == 0 ? idle + 1 : 0;
    if (idle > source.num_documents()) {
      throw std::runtime_error("source `" + source.name() +
                               "`: no text for a haystack, its documents hold EOS only");
    }
    const auto part = source.read(document, from, wanted);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
}

}  // namespace

NeedleSet::NeedleSet(const std::string& path, const TokenizerIdentity& expected) : path_(path) {
  const auto take = [&](const ItemFile& file, const nlohmann::json& item, std::int64_t index) {
    const auto ids = [&](const char* key) {
      return file.ids(item.at(key), "item " + std::to_string(index) + ", `" + key + "`");
    };
    items_.push_back({ids("needle"), ids("question"), ids("answer"), item.value("text", "")});
  };
  const ItemFile file = read_item_file(path, "sala-needles", "needle set", expected, take);
  tokenizer_hash_ = file.tokenizer_hash;
  start_ = file.start;
}

NeedlePrompt NeedleSet::prompt(const Source& haystack, std::int64_t length, double depth_frac,
                               std::int64_t index, std::uint64_t seed) const {
  const Needle& item = items_[static_cast<size_t>(index % size())];
  const auto needle_size = static_cast<std::int64_t>(item.needle.size());
  const std::int64_t fixed =
      num_start() + needle_size + static_cast<std::int64_t>(item.question.size());
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
  const std::int64_t room = length - fixed;
  prompt.ids = start_;
  add_haystack(prompt.ids, haystack, static_cast<std::int64_t>(first), room, start_);
  prompt.needle_start = num_start() + std::llround(depth_frac * static_cast<double>(room));
  prompt.ids.insert(prompt.ids.begin() + prompt.needle_start, item.needle.begin(),
                    item.needle.end());
  prompt.ids.insert(prompt.ids.end(), item.question.begin(), item.question.end());
  prompt.answer = item.answer;
  return prompt;
}

}  // namespace sala
