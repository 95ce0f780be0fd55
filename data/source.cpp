// Globs and document numbering behind data/source.h.
#include "data/source.h"

#include <glob.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/hash.h"

namespace sala {

std::vector<std::string> expand_globs(const std::vector<std::string>& patterns) {
  std::vector<std::string> files;
  for (const std::string& pattern : patterns) {
    glob_t found{};
    const int status = ::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found);
    if (status == 0) files.insert(files.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
    if (status != 0) {
      throw std::runtime_error(
          pattern + ": no file matches; check the path, or make stores with data/prepare");
    }
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

Source::Source(const SourceSpec& spec, const TokenizerIdentity& tokenizer)
    : name_(spec.name), weight_(spec.weight), first_document_{0} {
  const std::string who = "source `" + name_ + "`: ";
  if (spec.files.empty()) throw std::runtime_error(who + "it lists no file; give it token stores");
  if (!(std::isfinite(weight_) && weight_ > 0)) {
    throw std::runtime_error(who + "weight must be above 0, found " + std::to_string(weight_));
  }
  Xxh3Stream hash(Xxh3Width::k64);
  for (const std::string& file : spec.files) {
    const TokenStore& store = stores_.emplace_back(file, tokenizer);
    const TokenStore& first = stores_.front();
    if (store.tokenizer_hash() != first.tokenizer_hash()) {
      throw std::runtime_error(file + ": made with another tokenizer (" + store.tokenizer_hash() +
                               ") than " + first.path() + " (" + first.tokenizer_hash() +
                               "); run data/prepare again with one tokenizer.json");
    }
    num_tokens_ += store.num_tokens();
    first_document_.push_back(first_document_.back() + store.num_documents());
    hash.update(store.checksum().data(), store.checksum().size());
  }
  if (num_documents() == 0) {
    throw std::runtime_error(who + "no document in " + spec.files.front() +
                             (spec.files.size() > 1 ? " and the other files" : "") +
                             "; check the input of data/prepare");
  }
  fingerprint_ = hash.hex();
}

Source::Place Source::place(std::int64_t document) const {
  const auto above = std::upper_bound(first_document_.begin(), first_document_.end(), document);
  const auto store = above - first_document_.begin() - 1;
  return {&stores_[static_cast<size_t>(store)], document - first_document_[store]};
}

std::int64_t Source::document_length(std::int64_t document) const {
  const Place found = place(document);
  return found.store->document_length(found.document);
}

}  // namespace sala
