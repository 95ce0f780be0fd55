// Globs, document numbering and guarded reading behind data/source.h.
#include "data/source.h"

#include <glob.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "data/files/hash.h"
#include "data/files/system_advice.h"
#include "data/stores/patience.h"

namespace sala {
namespace {

thread_local int listing_error = 0;  // glob's callback takes no argument of ours

int keep_listing_error(const char*, int code) {
  if (code == ENOENT || code == ENOTDIR) return 0;
  listing_error = code;
  return 1;
}

std::vector<std::int64_t> counts(const std::vector<std::int64_t>& first) {
  std::vector<std::int64_t> counts;
  for (size_t s = 0; s + 1 < first.size(); ++s) counts.push_back(first[s + 1] - first[s]);
  return counts;
}

}  // namespace

std::vector<std::string> expand_globs(const std::vector<std::string>& patterns) {
  std::vector<std::string> files;
  for (const std::string& pattern : patterns) {
    if (std::filesystem::is_regular_file(pattern)) {  // however it is called: q[1]/a.h5
      files.push_back(pattern);
      continue;
    }
    glob_t found{};
    listing_error = 0;
    const int status = ::glob(pattern.c_str(), GLOB_NOSORT, keep_listing_error, &found);
    if (status == 0) files.insert(files.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
    if (status == GLOB_NOMATCH) {
      throw std::runtime_error(
          pattern + ": no file matches; check the path, or make stores with data/prepare");
    }
    if (status != 0) {
      const int code = listing_error == 0 ? ENOMEM : listing_error;
      throw std::runtime_error(pattern + ": cannot list the files: " + std::strerror(code) +
                               system_advice(code));
    }
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

template <class Read>
auto Source::read_from(size_t index, const Read& read) const {
  return read_patiently([&] { return read_unchanged(index, read); },
                        [&] { open_->close(stores_[index].path); });
}

StoreFacts Source::read_facts(const std::string& path) const {
  return read_patiently([&] { return open_->open(path).facts(); }, [&] { open_->close(path); });
}

// Runs `read` on an open store whose file is the one that was verified, before and after.
template <class Read>
auto Source::read_unchanged(size_t index, const Read& read) const {
  constexpr int kAttempts = 3;  // a file that goes on changing is not read at all
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    Store& known = stores_[index];
    try {
      const TokenStore& store = open_->open(known.path);
      if (store.facts().file == known.facts.file) {
        auto result = read(store);
        if (store.is_unchanged()) return result;
      }
    } catch (const TooManyOpenFiles&) {
      throw;
    } catch (const std::runtime_error&) {
      // What is wrong with a file that changed is that it changed.
      if (file_identity(known.path) == known.facts.file) throw;
    }
    check_changed(index);
  }
  throw std::runtime_error(stores_[index].path +
                           ": is being written to while it is read; stop whatever writes it");
}

void Source::check_changed(size_t index) const {
  Store& known = stores_[index];
  open_->close(known.path);
  std::string reason;
  try {
    const TokenStore& store = open_->open(known.path);
    store.verify_checksum();
    if (store.facts().checksum == known.facts.checksum) {
      known.facts.file = store.facts().file;
      return;
    }
    reason = "its data hashes to " + store.facts().checksum + ", before to " + known.facts.checksum;
  } catch (const TooManyOpenFiles&) {
    throw;
  } catch (const FileError& error) {
    if (may_pass(error.code())) throw;
    reason = error.what();
  } catch (const std::runtime_error& error) {
    reason = error.what();
  }
  open_->close(known.path);
  throw std::runtime_error(known.path + ": was overwritten while this run uses it (" + reason +
                           "); restore the store that the run began with");
}

Source::Source(const SourceSpec& spec, const TokenizerIdentity& tokenizer,
               const StoreCatalog& catalog, std::shared_ptr<OpenStores> open)
    : name_(spec.name),
      weight_(spec.weight),
      first_document_{0},
      open_(open ? std::move(open) : std::make_shared<OpenStores>()) {
  const std::string who = "source `" + name_ + "`: ";
  if (spec.files.empty()) throw std::runtime_error(who + "it lists no file; give it token stores");
  if (!(std::isfinite(weight_) && weight_ > 0)) {
    throw std::runtime_error(who + "weight must be above 0, found " + std::to_string(weight_));
  }
  Xxh3Stream hash(Xxh3Width::k64);
  for (const std::string& file : spec.files) {
    const StoreFacts* known = catalog.find(file);
    const StoreFacts& facts =
        stores_.emplace_back(Store{file, known ? *known : read_facts(file)}).facts;
    check_tokenizer(file, facts, tokenizer);
    if (facts.tokenizer_hash != tokenizer_hash()) {
      throw std::runtime_error(file + ": made with another tokenizer (" + facts.tokenizer_hash +
                               ") than " + first_path() + " (" + tokenizer_hash() +
                               "); run data/prepare again with one tokenizer.json");
    }
    num_tokens_ += facts.num_tokens;
    first_document_.push_back(first_document_.back() + facts.num_documents);
    hash.update(facts.checksum.data(), facts.checksum.size());
  }
  if (num_documents() == 0) {
    throw std::runtime_error(who + "no document in " + spec.files.front() +
                             (spec.files.size() > 1 ? " and the other files" : "") +
                             "; check the input of data/prepare");
  }
  fingerprint_ = hash.hex();
  offsets_ = find_offsets(catalog);
}

DocumentOffsets Source::find_offsets(const StoreCatalog& catalog) const {
  const std::string path = catalog.offsets_path(fingerprint_);
  if (path.empty() || !std::filesystem::exists(path)) return collect_offsets(path);
  return DocumentOffsets::open(path, counts(first_document_));
}

DocumentOffsets Source::collect_offsets(const std::string& path) const {
  DocumentOffsets offsets(path, counts(first_document_));
  for (size_t s = 0; s < stores_.size(); ++s) {
    offsets.append(read_from(s, [](const TokenStore& store) { return store.read_offsets(); }));
  }
  offsets.finish();
  return offsets;
}

size_t Source::store_of(std::int64_t document) const {
  const auto above = std::upper_bound(first_document_.begin(), first_document_.end(), document);
  return static_cast<size_t>(above - first_document_.begin() - 1);
}

std::int64_t Source::document_length(std::int64_t document) const {
  const size_t store = store_of(document);
  const auto [first, end] = offsets_.range(store, document - first_document_[store]);
  return end - first;
}

std::int64_t Source::first_token(std::int64_t document, std::int64_t offset,
                                 std::int64_t count) const {
  if (document < 0 || document >= num_documents() || offset < 0 || count < 0 ||
      count > document_length(document) || offset > document_length(document) - count) {
    throw std::runtime_error("source `" + name_ + "`: no tokens " + std::to_string(offset) +
                             " and " + std::to_string(count) + " on in document " +
                             std::to_string(document));
  }
  const size_t store = store_of(document);
  return offsets_.range(store, document - first_document_[store]).first + offset;
}

std::vector<std::int32_t> Source::read(std::int64_t document, std::int64_t offset,
                                       std::int64_t count) const {
  const std::int64_t first = first_token(document, offset, count);
  return read_from(store_of(document),
                   [&](const TokenStore& store) { return store.read(first, count); });
}

std::vector<std::uint8_t> Source::read_loss_mask(std::int64_t document, std::int64_t offset,
                                                 std::int64_t count) const {
  const std::int64_t first = first_token(document, offset, count);
  if (!has_loss_mask(document)) return std::vector<std::uint8_t>(static_cast<size_t>(count), 1);
  return read_from(store_of(document),
                   [&](const TokenStore& store) { return store.read_loss_mask(first, count); });
}

bool Source::has_loss_mask(std::int64_t document) const {
  return stores_[store_of(document)].facts.has_loss_mask;
}

bool Source::has_target() const {
  for (size_t s = 0; s < stores_.size(); ++s) {
    const StoreFacts& facts = stores_[s].facts;
    if (!facts.has_loss_mask && facts.num_tokens > facts.num_documents) return true;
    if (facts.has_loss_mask &&
        read_from(s, [](const TokenStore& store) { return store.has_target(); })) {
      return true;
    }
  }
  return false;
}

}  // namespace sala
