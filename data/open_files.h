// Files that are open: the ones used last. Who comes back to many files again and again (documents
// in ten thousand stores, the tensors of a checkpoint of hundreds of ranks) spends little on
// opening them, and never more than the system's limit allows. Belongs to one thread at a time, as
// the files in it do.
#pragma once

#include <list>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "data/files/hdf5_file.h"

namespace sala {

// File: made from a path, or by File::open; path() is what it was made from.
template <class File>
class OpenFiles {
 public:
  explicit OpenFiles(size_t capacity) : capacity_(capacity) {}

  // Opens it unless it is open; closes the one unused longest when there are too many, and more
  // when the system has no file left. Valid until the next call.
  File& open(const std::string& path) {
    if (const auto found = where_.find(path); found != where_.end()) {
      files_.splice(files_.begin(), files_, found->second);
      return files_.front();
    }
    if (files_.size() == capacity_) close_last();
    while (true) {
      try {
        add(path);
        break;
      } catch (const TooManyOpenFiles&) {
        if (files_.empty()) throw;
        close_last();
      }
    }
    where_[path] = files_.begin();
    return files_.front();
  }
  void close(const std::string& path) {
    const auto found = where_.find(path);
    if (found == where_.end()) return;
    files_.erase(found->second);
    where_.erase(found);
  }
  size_t num_open() const { return files_.size(); }
  size_t capacity() const { return capacity_; }

 private:
  void add(const std::string& path) {
    if constexpr (std::is_constructible_v<File, const std::string&>) {
      files_.emplace_front(path);
    } else {
      files_.push_front(File::open(path));
    }
  }
  void close_last() { close(std::string(files_.back().path())); }

  size_t capacity_;
  std::list<File> files_;  // used last comes first
  std::unordered_map<std::string, typename std::list<File>::iterator> where_;
};

}  // namespace sala
