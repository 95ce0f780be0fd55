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

#include "data/files/file_identity.h"
#include "data/files/hdf5_file.h"

namespace sala {

// What the model's tokenizer is; a store made with another one is refused. Empty hash or size 0:
// not compared.
struct TokenizerIdentity {
  std::string hash;             // XXH3-64 hex of tokenizer.json
  std::int64_t vocab_size = 0;  // rows of the model's embedding: a store may use fewer, never more
};

// What a store says of itself, and the file that said it.
struct StoreFacts {
  FileIdentity file;
  std::string tokenizer_hash, checksum;
  std::int64_t vocab_size = 0;
  std::int64_t eos_id = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_documents = 0;
  bool has_loss_mask = false;
};

// Throws when the store at `path` was made with another tokenizer than `expected`.
void check_tokenizer(const std::string& path, const StoreFacts& facts,
                     const TokenizerIdentity& expected);

class TokenStore {
 public:
  // Opens and validates attributes, types and sizes; no data (see read_offsets, verify_checksum).
  explicit TokenStore(const std::string& path, const TokenizerIdentity& expected = {});

  const std::string& path() const { return file_.path(); }
  const StoreFacts& facts() const { return facts_; }
  // False when the file was written to since it was opened: what was read may be of two files.
  bool is_unchanged() const { return file_.identity() == facts_.file; }

  // First token of each document, and num_tokens: checked to start at 0, to grow and to end there.
  std::vector<std::int64_t> read_offsets() const;
  // Tokens [first, first + count) of the file. Every id is checked against vocab_size.
  std::vector<std::int32_t> read(std::int64_t first, std::int64_t count) const;
  // Loss mask of the same range; all ones when the store has none.
  std::vector<std::uint8_t> read_loss_mask(std::int64_t first, std::int64_t count) const;
  // Whether any token counts as a target: one that is not the first of its document and that the
  // loss mask allows. Reads until it finds one.
  bool has_target() const;
  // Reads the whole file once, in slabs, and compares with the xxh3 attribute.
  void verify_checksum() const;

 private:
  [[noreturn]] void fail(const std::string& what) const;
  void read_attributes();
  std::string hash_attribute(const char* key) const;
  void check_datasets() const;
  void check_range(std::int64_t first, std::int64_t count) const;
  template <class Stored>
  std::vector<std::int32_t> read_ids(std::int64_t first, std::int64_t count) const;

  Hdf5File file_;
  StoreFacts facts_;
  Hdf5Type token_type_ = Hdf5Type::kU16;
};

}  // namespace sala
