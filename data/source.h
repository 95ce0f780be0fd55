// One named source of a mixture: a list of token stores seen as one list of documents.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/token_store.h"

namespace sala {

struct SourceSpec {
  std::string name;
  std::vector<std::string> files;  // in this order; see expand_globs
  double weight = 1.0;             // share of the stage's tokens, relative to the other sources
};

// Every file that matches a pattern (*, ?, [...]; a plain path matches itself), sorted, without
// repetition. A pattern without a match is an error.
std::vector<std::string> expand_globs(const std::vector<std::string>& patterns);

class Source {
 public:
  // Opens every store. No file, no document, or stores of different vocabularies: an error.
  Source(const SourceSpec& spec, const TokenizerIdentity& tokenizer);

  const std::string& name() const { return name_; }
  double weight() const { return weight_; }
  std::int64_t num_documents() const { return first_document_.back(); }
  std::int64_t num_tokens() const { return num_tokens_; }
  // Changes when any file's content or their order changes; their paths do not matter.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::vector<TokenStore>& stores() const { return stores_; }

  struct Place {
    const TokenStore* store;
    std::int64_t document;  // within the store
  };
  Place place(std::int64_t document) const;
  std::int64_t document_length(std::int64_t document) const;

 private:
  std::string name_, fingerprint_;
  double weight_;
  std::int64_t num_tokens_ = 0;
  std::vector<TokenStore> stores_;
  std::vector<std::int64_t> first_document_;  // (stores + 1): number of its first document
};

}  // namespace sala
