// Files of a checkpoint that are open: the ones read last. Each share of a tensor lies in a file of
// its own, so that who reads tensor after tensor comes back to every file again and again.
#pragma once

#include <list>
#include <string>

#include "data/files/hdf5_file.h"

namespace sala {

class OpenFiles {
 public:
  OpenFiles();  // as many as an eighth of the process's limit of open files, 8 to 64

  // Opens it unless it is open; closes the one unused longest when there are too many, and more
  // when the system has no file left. Valid until the next call.
  Hdf5File& open(const std::string& path);
  void close(const std::string& path);
  size_t num_open() const { return files_.size(); }
  size_t capacity() const { return capacity_; }

 private:
  size_t capacity_;
  std::list<Hdf5File> files_;  // used last comes first
};

}  // namespace sala
