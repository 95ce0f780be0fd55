// Validation and reading behind data/stores/token_store.h.
#include "data/stores/token_store.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "data/files/hash.h"

namespace sala {
namespace {

const char* const kPrepareAgain = "; write the store again with data/prepare";

// Letters, digits and signs of ASCII, few of them: fit for one line of a message.
bool is_word(const std::string& text) {
  return !text.empty() && text.size() <= 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

}  // namespace

void check_tokenizer(const std::string& path, const StoreFacts& facts,
                     const TokenizerIdentity& expected) {
  if (!expected.hash.empty() && expected.hash != facts.tokenizer_hash) {
    throw std::runtime_error(path + ": made with another tokenizer: expected tokenizer hash " +
                             expected.hash + ", found " + facts.tokenizer_hash +
                             "; run data/prepare with the model's tokenizer.json");
  }
  if (expected.vocab_size > 0 && facts.vocab_size > expected.vocab_size) {
    throw std::runtime_error(path + ": made for " + std::to_string(facts.vocab_size) +
                             " token ids, the model has " + std::to_string(expected.vocab_size) +
                             "; run data/prepare with the model's tokenizer.json");
  }
}

TokenStore::TokenStore(const std::string& path, const TokenizerIdentity& expected)
    : file_(Hdf5File::open(path)) {
  facts_.file = file_.identity();
  read_attributes();
  check_tokenizer(path, facts_, expected);
  token_type_ = file_.type("tokens");
  if (token_type_ != Hdf5Type::kU16 && token_type_ != Hdf5Type::kU32) {
    fail(std::string("dataset `tokens` expected u16 or u32, found ") + hdf5_type_name(token_type_) +
         kPrepareAgain);
  }
  facts_.has_loss_mask = file_.exists("loss_mask");
  check_datasets();
}

void TokenStore::fail(const std::string& what) const {
  throw std::runtime_error(path() + ": " + what);
}

std::string TokenStore::hash_attribute(const char* key) const {
  std::string text = file_.attribute_string(key);
  if (!is_word(text)) {
    fail(std::string("attribute `") + key + "` is not a hash" + kPrepareAgain);
  }
  return text;
}

void TokenStore::read_attributes() {
  std::string format = file_.has_attribute("format") ? file_.attribute_string("format") : "nothing";
  if (!is_word(format)) format = "something unreadable";
  if (format != "sala-token-store") {
    fail("expected attribute `format` sala-token-store, found " + format +
         "; this is no token store, make one with data/prepare");
  }
  static_cast<void>(file_.attribute_string("source"));  // for people; it only has to be there
  facts_.vocab_size = file_.attribute_int("vocab_size");
  facts_.eos_id = file_.attribute_int("eos_id");
  facts_.num_tokens = file_.attribute_int("num_tokens");
  facts_.num_documents = file_.attribute_int("num_documents");
  facts_.tokenizer_hash = hash_attribute("tokenizer_hash");
  facts_.checksum = hash_attribute("xxh3");
  if (facts_.vocab_size < 1 || facts_.vocab_size > std::numeric_limits<std::int32_t>::max()) {
    fail("attribute `vocab_size` is " + std::to_string(facts_.vocab_size) +
         ", expected 1 to 2^31 - 1" + kPrepareAgain);
  }
  if (facts_.eos_id < 0 || facts_.eos_id >= facts_.vocab_size) {
    fail("attribute `eos_id` is " + std::to_string(facts_.eos_id) + ", expected below vocab_size " +
         std::to_string(facts_.vocab_size) + kPrepareAgain);
  }
  if (facts_.num_documents < 0 || facts_.num_documents > facts_.num_tokens) {
    fail("attributes `num_documents` and `num_tokens` are " + std::to_string(facts_.num_documents) +
         " and " + std::to_string(facts_.num_tokens) + ", expected 0 or more and no fewer tokens" +
         kPrepareAgain);
  }
}

void TokenStore::check_datasets() const {
  const auto expect = [&](const char* name, std::int64_t expected) {
    if (file_.shape(name) != std::vector<std::int64_t>{expected}) {
      fail(std::string("dataset `") + name + "` has " + std::to_string(file_.num_elements(name)) +
           " elements, its attributes say " + std::to_string(expected) + kPrepareAgain);
    }
    // The format has no filter: what is not in the file would be read as zeros, and memory asked
    // for it.
    if (expected > facts_.file.num_bytes / element_size(file_.type(name))) {
      fail(std::string("dataset `") + name + "` says it has " + std::to_string(expected) +
           " elements, more than a file of " + std::to_string(facts_.file.num_bytes) +
           " bytes holds" + kPrepareAgain);
    }
  };
  expect("tokens", facts_.num_tokens);
  expect("document_offsets", facts_.num_documents + 1);
  if (!facts_.has_loss_mask) return;
  expect("loss_mask", facts_.num_tokens);
  if (file_.type("loss_mask") != Hdf5Type::kU8) {
    fail(std::string("dataset `loss_mask` expected u8, found ") +
         hdf5_type_name(file_.type("loss_mask")) + kPrepareAgain);
  }
}

std::vector<std::int64_t> TokenStore::read_offsets() const {
  std::vector<std::int64_t> offsets = file_.read_all<std::int64_t>("document_offsets");
  if (offsets.front() != 0 || offsets.back() != facts_.num_tokens) {
    fail("document_offsets runs from " + std::to_string(offsets.front()) + " to " +
         std::to_string(offsets.back()) + ", expected 0 to " + std::to_string(facts_.num_tokens) +
         kPrepareAgain);
  }
  for (size_t d = 1; d < offsets.size(); ++d) {
    if (offsets[d] <= offsets[d - 1]) {
      fail("document_offsets must grow, but offset " + std::to_string(d) + " is " +
           std::to_string(offsets[d]) + " after " + std::to_string(offsets[d - 1]) + kPrepareAgain);
    }
  }
  return offsets;
}

void TokenStore::check_range(std::int64_t first, std::int64_t count) const {
  if (first < 0 || count < 0 || count > facts_.num_tokens || first > facts_.num_tokens - count) {
    fail("no tokens " + std::to_string(first) + " and " + std::to_string(count) +
         " on, the store has " + std::to_string(facts_.num_tokens));
  }
}

template <class Stored>
std::vector<std::int32_t> TokenStore::read_ids(std::int64_t first, std::int64_t count) const {
  std::vector<Stored> stored(static_cast<size_t>(count));
  file_.read("tokens", first, count, stored.data());
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i] >= facts_.vocab_size) {
      fail("dataset `tokens` at offset " + std::to_string(first + static_cast<std::int64_t>(i)) +
           " holds id " + std::to_string(stored[i]) + ", the limit is vocab_size " +
           std::to_string(facts_.vocab_size) +
           "; the file is damaged: write it again with data/prepare");
    }
  }
  return {stored.begin(), stored.end()};
}

std::vector<std::int32_t> TokenStore::read(std::int64_t first, std::int64_t count) const {
  check_range(first, count);
  return token_type_ == Hdf5Type::kU16 ? read_ids<std::uint16_t>(first, count)
                                       : read_ids<std::uint32_t>(first, count);
}

std::vector<std::uint8_t> TokenStore::read_loss_mask(std::int64_t first, std::int64_t count) const {
  check_range(first, count);
  std::vector<std::uint8_t> mask(static_cast<size_t>(count), 1);
  if (!facts_.has_loss_mask) return mask;
  file_.read("loss_mask", first, count, mask.data());
  const auto bad = std::find_if(mask.begin(), mask.end(), [](std::uint8_t m) { return m > 1; });
  if (bad != mask.end()) {
    fail("dataset `loss_mask` at offset " + std::to_string(first + (bad - mask.begin())) +
         " holds " + std::to_string(*bad) + ", expected 0 or 1" + kPrepareAgain);
  }
  return mask;
}

bool TokenStore::has_target() const {
  if (!facts_.has_loss_mask) return facts_.num_tokens > facts_.num_documents;
  const std::vector<std::int64_t> offsets = read_offsets();
  auto next_start = offsets.begin();
  for (std::int64_t first = 0; first < facts_.num_tokens; first += kSlabBytes) {
    const auto mask = read_loss_mask(first, std::min(kSlabBytes, facts_.num_tokens - first));
    for (size_t i = 0; i < mask.size(); ++i) {
      const bool starts = first + static_cast<std::int64_t>(i) == *next_start;
      if (starts) ++next_start;
      if (mask[i] == 1 && !starts) return true;
    }
  }
  return false;
}

void TokenStore::verify_checksum() const {
  Xxh3Stream hash(Xxh3Width::k64);
  std::vector<std::uint8_t> bytes;
  for (const char* name : {"tokens", "document_offsets", "loss_mask"}) {
    if (!file_.exists(name)) continue;
    const Hdf5Type type = file_.type(name);
    const std::int64_t rows = file_.num_elements(name);
    const std::int64_t slab = kSlabBytes / element_size(type);
    for (std::int64_t first = 0; first < rows; first += slab) {
      const std::int64_t count = std::min(slab, rows - first);
      bytes.resize(static_cast<size_t>(count * element_size(type)));
      file_.read_raw(name, type, first, count, bytes.data());
      hash.update(bytes.data(), bytes.size());
    }
  }
  if (const std::string found = hash.hex(); found != facts_.checksum) {
    fail("checksum mismatch: the data hashes to " + found + ", attribute `xxh3` says " +
         facts_.checksum +
         "; the file is damaged: restore it from a copy or write it again with data/prepare");
  }
}

}  // namespace sala
