// pread, pwrite and hashes behind data/stores/document_offsets.h. Not mapped: a file system that
// fails gives an error here, and a signal there.
#include "data/stores/document_offsets.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hash.h"
#include "data/files/system_advice.h"
#include "data/stores/patience.h"

namespace sala {
namespace {

constexpr std::int64_t kMagic = 0x7374657366666f64;  // "doffsets"
constexpr std::int64_t kWord = sizeof(std::int64_t);
constexpr std::int64_t kHeaderWords = 3;
constexpr const char* kInMemory = "document offsets in memory";

std::int64_t hash_of(const std::int64_t* words, size_t count) {
  return static_cast<std::int64_t>(xxh3_64(words, count * sizeof(std::int64_t)));
}

}  // namespace

DocumentOffsets::DocumentOffsets(std::string path, const std::vector<std::int64_t>& num_documents)
    : path_(std::move(path)) {
  layout(num_documents);
  if (path_.empty()) {
    path_ = kInMemory;
    file_ = ::memfd_create("document-offsets", MFD_CLOEXEC);
  } else {
    temporary_ = path_ + "." + std::to_string(::getpid()) + ".tmp";  // two may write at a time
    file_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  }
  if (file_ < 0) fail("cannot create");
}

DocumentOffsets DocumentOffsets::open(const std::string& path,
                                      const std::vector<std::int64_t>& num_documents) {
  DocumentOffsets offsets;
  offsets.path_ = path;
  offsets.layout(num_documents);
  offsets.file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (offsets.file_ < 0) offsets.fail("cannot open");
  std::vector<std::int64_t> header(kHeaderWords + 2 * offsets.parts_.size());
  offsets.read(0, header.data(), static_cast<std::int64_t>(header.size()) * kWord);
  for (size_t s = 0; s < offsets.parts_.size(); ++s) {
    offsets.parts_[s].hash = header[kHeaderWords + 2 * s + 1];
  }
  if (header != offsets.header()) {
    throw std::runtime_error(path + ": not the offsets of these stores; delete it and run again");
  }
  return offsets;
}

DocumentOffsets::DocumentOffsets(DocumentOffsets&& other) noexcept { *this = std::move(other); }

DocumentOffsets& DocumentOffsets::operator=(DocumentOffsets&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  std::swap(file_, other.file_);
  std::swap(parts_, other.parts_);
  std::swap(starts_, other.starts_);
  std::swap(appended_, other.appended_);
  std::swap(checked_, other.checked_);
  return *this;
}

DocumentOffsets::~DocumentOffsets() {
  if (file_ >= 0) ::close(file_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void DocumentOffsets::fail(const std::string& what) const {
  const int code = errno;
  throw FileError(path_ + ": " + what + ": " + std::strerror(code) + system_advice(code), code);
}

void DocumentOffsets::layout(const std::vector<std::int64_t>& num_documents) {
  std::int64_t start = kWord * (kHeaderWords + 2 * static_cast<std::int64_t>(num_documents.size()));
  for (const std::int64_t count : num_documents) {
    parts_.push_back({count, 0});
    starts_.push_back(start);
    start += kWord * (count + 1);
  }
  checked_.resize(parts_.size());
}

std::vector<std::int64_t> DocumentOffsets::header() const {
  std::vector<std::int64_t> words = {kMagic, static_cast<std::int64_t>(parts_.size()), 0};
  for (const Part& part : parts_) words.insert(words.end(), {part.num_documents, part.hash});
  words[2] = hash_of(words.data() + kHeaderWords, words.size() - kHeaderWords);
  return words;
}

void DocumentOffsets::append(const std::vector<std::int64_t>& offsets) {
  Part& part = parts_.at(appended_);
  if (static_cast<std::int64_t>(offsets.size()) != part.num_documents + 1) {
    throw std::logic_error("DocumentOffsets::append: another number of documents than announced");
  }
  part.hash = hash_of(offsets.data(), offsets.size());
  write(starts_[appended_++], offsets.data(), static_cast<std::int64_t>(offsets.size()) * kWord);
}

void DocumentOffsets::finish() {
  const std::vector<std::int64_t> words = header();
  write(0, words.data(), static_cast<std::int64_t>(words.size()) * kWord);
  if (temporary_.empty()) return;
  rename_durably(temporary_, path_);
  temporary_.clear();
}

std::pair<std::int64_t, std::int64_t> DocumentOffsets::range(size_t store,
                                                             std::int64_t document) const {
  if (!checked_[store]) static_cast<void>(of_store(store));
  std::int64_t both[2];
  read(starts_[store] + document * kWord, both, sizeof both);
  return {both[0], both[1]};
}

std::vector<std::int64_t> DocumentOffsets::of_store(size_t store) const {
  std::vector<std::int64_t> offsets(static_cast<size_t>(parts_[store].num_documents) + 1);
  read(starts_[store], offsets.data(), static_cast<std::int64_t>(offsets.size()) * kWord);
  if (hash_of(offsets.data(), offsets.size()) != parts_[store].hash) {
    throw std::runtime_error(path_ + ": the offsets of store " + std::to_string(store) +
                             " are damaged; delete this file and run again");
  }
  checked_[store] = true;
  return offsets;
}

void DocumentOffsets::read(std::int64_t position, void* out, std::int64_t num_bytes) const {
  read_patiently([&] { read_once(position, out, num_bytes); }, [&] { reopen(); });
}

// What a server has dropped is found again under its name.
void DocumentOffsets::reopen() const {
  if (!temporary_.empty() || path_ == kInMemory) return;
  const int fresh = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fresh < 0) return;  // the next read says why
  ::dup3(fresh, file_, O_CLOEXEC);
  ::close(fresh);
}

void DocumentOffsets::read_once(std::int64_t position, void* out, std::int64_t num_bytes) const {
  auto* bytes = static_cast<char*>(out);
  while (num_bytes > 0) {
    const ssize_t got = ::pread(file_, bytes, static_cast<size_t>(num_bytes), position);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("cannot read");
    if (got == 0) throw std::runtime_error(path_ + ": is cut short; delete it and run again");
    bytes += got;
    position += got;
    num_bytes -= got;
  }
}

void DocumentOffsets::write(std::int64_t position, const void* out, std::int64_t num_bytes) {
  const auto* bytes = static_cast<const char*>(out);
  while (num_bytes > 0) {
    const ssize_t put = ::pwrite(file_, bytes, static_cast<size_t>(num_bytes), position);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("cannot write");
    bytes += put;
    position += put;
    num_bytes -= put;
  }
}

}  // namespace sala
