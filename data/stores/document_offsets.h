// Where the documents of a source lie in its stores: 8 bytes a document, in a file that is read
// where it is needed, so that the processes of a node share one copy in the page cache and hold
// none.
//
//   magic, number of stores, hash of the table; the table: documents and hash of each store;
//   then of each store the offsets (documents + 1), as its dataset `document_offsets`. All i64.
//
// The part of a store is compared with its hash when it is first used.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sala {

class DocumentOffsets {
 public:
  DocumentOffsets() = default;  // of no store
  // Starts a file for stores of so many documents: append() each store, in order, then finish().
  // Empty path: a file in memory, for short-lived programs and tests.
  DocumentOffsets(std::string path, const std::vector<std::int64_t>& num_documents);
  void append(const std::vector<std::int64_t>& offsets);
  void finish();  // syncs and gives the file its name

  // Opens a finished file. Missing, damaged or of other stores: std::runtime_error.
  static DocumentOffsets open(const std::string& path,
                              const std::vector<std::int64_t>& num_documents);

  DocumentOffsets(DocumentOffsets&&) noexcept;
  DocumentOffsets& operator=(DocumentOffsets&&) noexcept;
  ~DocumentOffsets();

  // First token of a document, and of the one after it.
  std::pair<std::int64_t, std::int64_t> range(size_t store, std::int64_t document) const;
  std::vector<std::int64_t> of_store(size_t store) const;

 private:
  struct Part {
    std::int64_t num_documents;
    std::int64_t hash;
  };

  [[noreturn]] void fail(const std::string& what) const;
  void layout(const std::vector<std::int64_t>& num_documents);
  std::vector<std::int64_t> header() const;
  void read(std::int64_t position, void* out, std::int64_t num_bytes) const;
  void read_once(std::int64_t position, void* out, std::int64_t num_bytes) const;
  void reopen() const;
  void write(std::int64_t position, const void* bytes, std::int64_t num_bytes);

  std::string path_, temporary_;
  int file_ = -1;
  std::vector<Part> parts_;
  std::vector<std::int64_t> starts_;  // byte of each store's first offset
  size_t appended_ = 0;
  mutable std::vector<bool> checked_;  // stores whose part was compared with its hash
};

}  // namespace sala
