// Validation and reading behind data/token_store.h.
#include "data/token_store.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "data/hash.h"

namespace sala {
namespace {

const char* const kPrepareAgain = "; write the store again with data/prepare";

}  // namespace

TokenStore::TokenStore(const std::string& path, const TokenizerIdentity& expected)
    : file_(Hdf5File::open(path)) {
  read_attributes();
  check_tokenizer(expected);
  token_type_ = file_.type("tokens");
  if (token_type_ != ElementType::kU16 && token_type_ != ElementType::kU32) {
    fail(std::string("dataset `tokens` expected u16 or u32, found ") +
         element_type_name(token_type_) + kPrepareAgain);
  }
  read_offsets();
}

void TokenStore::fail(const std::string& what) const {
  throw std::runtime_error(path() + ": " + what);
}

void TokenStore::read_attributes() {
  const std::string format =
      file_.has_attribute("format") ? file_.attribute_string("format") : "nothing";
  if (format != "sala-token-store") {
    fail("expected attribute `format` sala-token-store, found " + format +
         "; this is no token store, make one with data/prepare");
  }
  vocab_size_ = file_.attribute_int("vocab_size");
  eos_id_ = file_.attribute_int("eos_id");
  tokenizer_hash_ = file_.attribute_string("tokenizer_hash");
  source_ = file_.attribute_string("source");
  checksum_ = file_.attribute_string("xxh3");
  if (vocab_size_ < 1 || vocab_size_ > std::numeric_limits<std::int32_t>::max()) {
    fail("attribute `vocab_size` is " + std::to_string(vocab_size_) + ", expected 1 to 2^31 - 1" +
         kPrepareAgain);
  }
  if (eos_id_ < 0 || eos_id_ >= vocab_size_) {
    fail("attribute `eos_id` is " + std::to_string(eos_id_) + ", expected below vocab_size " +
         std::to_string(vocab_size_) + kPrepareAgain);
  }
}

void TokenStore::check_tokenizer(const TokenizerIdentity& expected) const {
  if (!expected.hash.empty() && expected.hash != tokenizer_hash_) {
    fail("made with another tokenizer: expected tokenizer hash " + expected.hash + ", found " +
         tokenizer_hash_ + "; run data/prepare with the model's tokenizer.json");
  }
  if (expected.vocab_size > 0 && vocab_size_ > expected.vocab_size) {
    fail("made for " + std::to_string(vocab_size_) + " token ids, the model has " +
         std::to_string(expected.vocab_size) +
         "; run data/prepare with the model's tokenizer.json");
  }
}

void TokenStore::read_offsets() {
  const std::int64_t num_tokens = file_.attribute_int("num_tokens");
  const std::int64_t num_documents = file_.attribute_int("num_documents");
  const auto expect_size = [&](const char* name, std::int64_t expected) {
    if (file_.shape(name) != std::vector<std::int64_t>{expected}) {
      fail(std::string("dataset `") + name + "` has " + std::to_string(file_.num_elements(name)) +
           " elements, its attributes say " + std::to_string(expected) + kPrepareAgain);
    }
  };
  expect_size("tokens", num_tokens);
  expect_size("document_offsets", num_documents + 1);
  has_loss_mask_ = file_.exists("loss_mask");
  if (has_loss_mask_) {
    expect_size("loss_mask", num_tokens);
    if (file_.type("loss_mask") != ElementType::kU8) {
      fail(std::string("dataset `loss_mask` expected u8, found ") +
           element_type_name(file_.type("loss_mask")) + kPrepareAgain);
    }
  }
  offsets_ = file_.read_all<std::int64_t>("document_offsets");
  if (offsets_.front() != 0 || offsets_.back() != num_tokens) {
    fail("document_offsets runs from " + std::to_string(offsets_.front()) + " to " +
         std::to_string(offsets_.back()) + ", expected 0 to " + std::to_string(num_tokens) +
         kPrepareAgain);
  }
  for (size_t d = 1; d < offsets_.size(); ++d) {
    if (offsets_[d] <= offsets_[d - 1]) {
      fail("document_offsets must grow, but offset " + std::to_string(d) + " is " +
           std::to_string(offsets_[d]) + " after " + std::to_string(offsets_[d - 1]) +
           kPrepareAgain);
    }
  }
}

void TokenStore::check_range(std::int64_t document, std::int64_t offset, std::int64_t count) const {
  if (document < 0 || document >= num_documents() || offset < 0 || count < 0 ||
      offset + count > document_length(document)) {
    fail("no tokens " + std::to_string(offset) + ".." + std::to_string(offset + count) +
         " in document " + std::to_string(document));
  }
}

template <class Stored>
std::vector<std::int32_t> TokenStore::read_ids(std::int64_t first, std::int64_t count) const {
  std::vector<Stored> stored(static_cast<size_t>(count));
  file_.read("tokens", first, count, stored.data());
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i] >= vocab_size_) {
      fail("dataset `tokens` at offset " + std::to_string(first + static_cast<std::int64_t>(i)) +
           " holds id " + std::to_string(stored[i]) + ", the limit is vocab_size " +
           std::to_string(vocab_size_) + "; the file is damaged: write it again with data/prepare");
    }
  }
  return {stored.begin(), stored.end()};
}

std::vector<std::int32_t> TokenStore::read(std::int64_t document, std::int64_t offset,
                                           std::int64_t count) const {
  check_range(document, offset, count);
  const std::int64_t first = offsets_[document] + offset;
  return token_type_ == ElementType::kU16 ? read_ids<std::uint16_t>(first, count)
                                          : read_ids<std::uint32_t>(first, count);
}

std::vector<std::uint8_t> TokenStore::read_loss_mask(std::int64_t document, std::int64_t offset,
                                                     std::int64_t count) const {
  check_range(document, offset, count);
  std::vector<std::uint8_t> mask(static_cast<size_t>(count), 1);
  if (!has_loss_mask_) return mask;
  const std::int64_t first = offsets_[document] + offset;
  file_.read("loss_mask", first, count, mask.data());
  const auto bad = std::find_if(mask.begin(), mask.end(), [](std::uint8_t m) { return m > 1; });
  if (bad != mask.end()) {
    fail("dataset `loss_mask` at offset " + std::to_string(first + (bad - mask.begin())) +
         " holds " + std::to_string(*bad) + ", expected 0 or 1" + kPrepareAgain);
  }
  return mask;
}

void TokenStore::verify_checksum() const {
  Xxh3Stream hash(Xxh3Width::k64);
  std::vector<std::uint8_t> bytes;
  for (const char* name : {"tokens", "document_offsets", "loss_mask"}) {
    if (!file_.exists(name)) continue;
    const ElementType type = file_.type(name);
    const std::int64_t rows = file_.num_elements(name);
    const std::int64_t slab = kSlabBytes / element_size(type);
    for (std::int64_t first = 0; first < rows; first += slab) {
      const std::int64_t count = std::min(slab, rows - first);
      bytes.resize(static_cast<size_t>(count * element_size(type)));
      file_.read_raw(name, type, first, count, bytes.data());
      hash.update(bytes.data(), bytes.size());
    }
  }
  if (const std::string found = hash.hex(); found != checksum_) {
    fail("checksum mismatch: the data hashes to " + found + ", attribute `xxh3` says " + checksum_ +
         "; the file is damaged: restore it from a copy or write it again with data/prepare");
  }
}

}  // namespace sala
