// One named source of a mixture: a list of token stores seen as one list of documents. Stores are
// opened when they are read from, and few at a time; what is held of each is its facts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/stores/document_offsets.h"
#include "data/stores/open_stores.h"
#include "data/stores/store_catalog.h"
#include "data/stores/token_store.h"

namespace sala {

struct SourceSpec {
  std::string name;
  std::vector<std::string> files;  // in this order; see expand_globs
  double weight = 1.0;             // share of the stage's tokens, relative to the other sources
};

// Every file that matches a pattern (*, ?, [...]; a plain path matches itself), sorted, without
// repetition. A pattern without a match, or a folder that cannot be listed, is an error.
std::vector<std::string> expand_globs(const std::vector<std::string>& patterns);

class Source {
 public:
  // The offsets of the documents are read from catalog.offsets_path(), which is written if it is
  // not there. Stores that `catalog` knows are not opened; the others are, one after the other, to
  // read their facts. No file, no document, or stores of different vocabularies: an error. Sources
  // that one thread reads may share `open` stores.
  Source(const SourceSpec& spec, const TokenizerIdentity& tokenizer,
         const StoreCatalog& catalog = {}, std::shared_ptr<OpenStores> open = nullptr);

  const std::string& name() const { return name_; }
  double weight() const { return weight_; }
  std::int64_t num_documents() const { return first_document_.back(); }
  std::int64_t num_tokens() const { return num_tokens_; }
  // Changes when any file's content or their order changes; their paths do not matter.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::string& tokenizer_hash() const { return stores_.front().facts.tokenizer_hash; }
  const std::string& first_path() const { return stores_.front().path; }

  std::int64_t document_length(std::int64_t document) const;
  // Calls visit(document, length) for every document in order, until it returns false.
  template <class Visit>
  void for_each_document(const Visit& visit) const {
    for (size_t s = 0; s < stores_.size(); ++s) {
      const std::vector<std::int64_t> offsets = offsets_.of_store(s);
      for (size_t d = 0; d + 1 < offsets.size(); ++d) {
        const auto document = first_document_[s] + static_cast<std::int64_t>(d);
        if (!visit(document, offsets[d + 1] - offsets[d])) return;
      }
    }
  }

  // Tokens [offset, offset + count) of a document, and their loss mask. A store that was written to
  // since it was verified is read again as a whole: the same data goes on, other data is an error.
  // A disk that refuses for a moment is asked again (data/stores/patience.h).
  std::vector<std::int32_t> read(std::int64_t document, std::int64_t offset,
                                 std::int64_t count) const;
  std::vector<std::uint8_t> read_loss_mask(std::int64_t document, std::int64_t offset,
                                           std::int64_t count) const;
  bool has_loss_mask(std::int64_t document) const;
  // Whether any token of any store counts as a target.
  bool has_target() const;

 private:
  struct Store {
    std::string path;
    StoreFacts facts;
  };

  size_t store_of(std::int64_t document) const;
  DocumentOffsets collect_offsets(const std::string& path) const;
  DocumentOffsets find_offsets(const StoreCatalog& catalog) const;
  std::int64_t first_token(std::int64_t document, std::int64_t offset, std::int64_t count) const;
  template <class Read>
  auto read_from(size_t store, const Read& read) const;
  template <class Read>
  auto read_unchanged(size_t store, const Read& read) const;
  StoreFacts read_facts(const std::string& path) const;
  void check_changed(size_t store) const;

  std::string name_, fingerprint_;
  double weight_;
  std::int64_t num_tokens_ = 0;
  mutable std::vector<Store> stores_;         // a file that changed without its data is known again
  std::vector<std::int64_t> first_document_;  // (stores + 1): number of its first document
  std::shared_ptr<OpenStores> open_;
  DocumentOffsets offsets_;  // last: collected from the stores
};

}  // namespace sala
