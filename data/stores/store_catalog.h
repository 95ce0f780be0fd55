// What a run remembers of its token stores, so that a start opens none of them: a store whose data
// was once read and found right is known by its path, size, time of change and inode until one of
// these is another.
//
//   FOLDER/verified.jsonl        a line for each file: XXH3-64 of the rest, and its facts in JSON
//   FOLDER/<fingerprint>.offsets data/stores/document_offsets.h of a source with that content
#pragma once

#include <map>
#include <string>
#include <vector>

#include "data/stores/token_store.h"

namespace sala {

class StoreCatalog {
 public:
  StoreCatalog() = default;  // remembers nothing
  // Reads FOLDER's record. A damaged line is passed over: its store is unknown then.
  explicit StoreCatalog(std::string folder);
  // The same without a folder of its own from then on: nothing is written there.
  static StoreCatalog copy_of(const std::string& folder);

  // The facts of the file that is at `path` now, if its data was verified; else nullptr. Throws if
  // there is no such file. Of a settled path: as the file was then.
  const StoreFacts* find(const std::string& path) const;
  // Of the file as it was when somebody looked at it.
  const StoreFacts* find(const std::string& path, const FileIdentity& file) const;
  // From now on find(path) is about this file and does not ask the file system: thousands of stores
  // are looked at once, whoever reads one compares it again (data/source.h).
  void settle(const std::string& path, const FileIdentity& file) { settled_[path] = file; }
  // `line` is what record_line() gave, on this or another process.
  void add(const std::string& line);
  static std::string record_line(const std::string& path, const StoreFacts& facts);

  // Writes the record with the lines of `paths` only: files that went away are forgotten.
  void save(const std::vector<std::string>& paths) const;

  std::string offsets_path(const std::string& fingerprint) const;  // empty without a folder

 private:
  std::string folder_;
  // By path, in UTF-8. Several for one whose nodes hold copies of their own.
  std::map<std::string, std::vector<StoreFacts>> known_;
  std::map<std::string, FileIdentity> settled_;
};

}  // namespace sala
