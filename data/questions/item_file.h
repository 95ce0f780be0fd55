// What the JSON files of data/prepare have in common (needle sets, multiple-choice sets):
//   {"format": "...", "tokenizer_hash": hex, "vocab_size": V, "start": [ids], "items": [{...},
//   ...]}
// `start`, which may be missing: ids that every prompt begins with.
// Errors: std::runtime_error with one line that names the file, and the item where one applies.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/stores/token_store.h"

namespace sala {

struct ItemFile {
  std::string path;
  std::string format;  // "sala-needles"
  std::string what;    // "needle set"
  std::string tokenizer_hash;
  std::int64_t vocab_size = 0;
  std::vector<std::int32_t> start;

  [[noreturn]] void fail(const std::string& message) const;
  // One or more ids of this vocabulary; `where`: "item 3, `answer`".
  std::vector<std::int32_t> ids(const nlohmann::json& list, const std::string& where) const;
};

// Reads the file's head, compares its tokenizer with the model's, and calls take(file, item, index)
// for every item; JSON that is not as `take` wants it is an error of the file. No item: an error.
using TakeItem =
    std::function<void(const ItemFile& file, const nlohmann::json& item, std::int64_t index)>;
ItemFile read_item_file(const std::string& path, const std::string& format, const std::string& what,
                        const TokenizerIdentity& expected, const TakeItem& take);

// Throws where a file made with this tokenizer is not for a model of the expected one.
void check_items_tokenizer(const std::string& path, const std::string& hash,
                           std::int64_t vocab_size, const TokenizerIdentity& expected);

}  // namespace sala
