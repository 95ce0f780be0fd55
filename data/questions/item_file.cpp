// Reading behind data/questions/item_file.h.
#include "data/questions/item_file.h"

#include <stdexcept>

#include "data/files/atomic_file.h"

namespace sala {

void ItemFile::fail(const std::string& message) const {
  throw std::runtime_error(path + ": " + message);
}

std::vector<std::int32_t> ItemFile::ids(const nlohmann::json& list,
                                        const std::string& where) const {
  const auto values = list.get<std::vector<std::int64_t>>();
  if (values.empty()) {
    fail(where + ": expected token ids, found none; run data/prepare again");
  }
  for (const std::int64_t id : values) {
    if (id < 0 || id >= vocab_size) {
      fail(where + ": id " + std::to_string(id) + " is outside the vocabulary of " +
           std::to_string(vocab_size) + "; run data/prepare with the model's tokenizer");
    }
  }
  return {values.begin(), values.end()};
}

void check_items_tokenizer(const std::string& path, const std::string& hash,
                           std::int64_t vocab_size, const TokenizerIdentity& expected) {
  const bool same = expected.hash.empty() || expected.hash == hash;
  const bool fits = expected.vocab_size <= 0 || vocab_size <= expected.vocab_size;
  if (same && fits) return;
  throw std::runtime_error(path + ": made with another tokenizer: expected tokenizer hash " +
                           expected.hash + ", found " + hash +
                           "; run data/prepare with the model's tokenizer.json");
}

ItemFile read_item_file(const std::string& path, const std::string& format, const std::string& what,
                        const TokenizerIdentity& expected, const TakeItem& take) {
  ItemFile file{path, format, what, {}, 0, {}};
  const std::string text = read_text_file(path);
  std::int64_t index = 0;
  try {
    const nlohmann::json set = nlohmann::json::parse(text);
    if (set.at("format") != format) {
      file.fail("expected `format` " + format + "; make the set with data/prepare");
    }
    file.tokenizer_hash = set.at("tokenizer_hash").get<std::string>();
    file.vocab_size = set.at("vocab_size").get<std::int64_t>();
    check_items_tokenizer(path, file.tokenizer_hash, file.vocab_size, expected);
    if (set.contains("start") && !set["start"].empty())
      file.start = file.ids(set["start"], "`start`");
    for (const auto& item : set.at("items")) take(file, item, index++);
  } catch (const nlohmann::json::exception& error) {
    file.fail("not a " + what + " (" + error.what() + "); make it with data/prepare");
  }
  if (index == 0) file.fail("holds no item; make the set with data/prepare");
  return file;
}

}  // namespace sala
