// One token store: an HDF5 shard of tokenised documents, written by data/prepare.
//
//   tokens            u16 or u32 (num_tokens): token ids, documents end to end
//   document_offsets  i64 (num_documents + 1): first token of each document, last num_tokens
//   loss_mask         u8 (num_tokens), optional: 1 where this token counts as a target
//   attributes        format, vocab_size, eos_id, tokenizer_hash, source, num_tokens,
//                     num_documents, xxh3 (XXH3-64 over the bytes of the datasets above, in order)
//
// Errors: std::runtime_error with one line that names the file, and the offset where one applies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/hdf5_file.h"

namespace sala {

// What the model's tokenizer is; a store made with another one is refused. Empty hash or size 0:
// not compared.
struct TokenizerIdentity {
  std::string hash;             // XXH3-64 hex of tokenizer.json
  std::int64_t vocab_size = 0;  // rows of the model's embedding: a store may use fewer, never more
};

class TokenStore {
 public:
  // Opens and validates everything but the token data itself (see verify_checksum).
  explicit TokenStore(const std::string& path, const TokenizerIdentity& expected = {});

  const std::string& path() const { return file_.path(); }
  const std::string& source() const { return source_; }
  const std::string& tokenizer_hash() const { return tokenizer_hash_; }
  const std::string& checksum() const { return checksum_; }
  std::int64_t vocab_size() const { return vocab_size_; }
  std::int64_t eos_id() const { return eos_id_; }
  std::int64_t num_tokens() const { return offsets_.back(); }
  std::int64_t num_documents() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  bool has_loss_mask() const { return has_loss_mask_; }
  std::int64_t document_length(std::int64_t document) const {
    return offsets_[document + 1] - offsets_[document];
  }

  // Tokens [offset, offset + count) of one document. Every id is checked against vocab_size.
  std::vector<std::int32_t> read(std::int64_t document, std::int64_t offset,
                                 std::int64_t count) const;
  // Loss mask of the same range; all ones when the store has none.
  std::vector<std::uint8_t> read_loss_mask(std::int64_t document, std::int64_t offset,
                                           std::int64_t count) const;
  // Reads the whole file once, in slabs, and compares with the xxh3 attribute.
  void verify_checksum() const;

 private:
  [[noreturn]] void fail(const std::string& what) const;
  void read_attributes();
  void check_tokenizer(const TokenizerIdentity& expected) const;
  void read_offsets();
  void check_range(std::int64_t document, std::int64_t offset, std::int64_t count) const;
  template <class Stored>
  std::vector<std::int32_t> read_ids(std::int64_t first, std::int64_t count) const;

  Hdf5File file_;
  std::string source_, tokenizer_hash_, checksum_;
  std::int64_t vocab_size_ = 0;
  std::int64_t eos_id_ = 0;
  ElementType token_type_ = ElementType::kU16;
  bool has_loss_mask_ = false;
  std::vector<std::int64_t> offsets_;  // (num_documents + 1)
};

}  // namespace sala
