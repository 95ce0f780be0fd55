// Least recently used behind trainer/checkpoint/open_files.h.
#include "trainer/checkpoint/open_files.h"

#include <algorithm>

#include "data/file_limit.h"

namespace sala {

OpenFiles::OpenFiles() : capacity_(static_cast<size_t>(share_of_open_files(64))) {}

Hdf5File& OpenFiles::open(const std::string& path) {
  const auto found = std::find_if(files_.begin(), files_.end(),
                                  [&](const Hdf5File& file) { return file.path() == path; });
  if (found != files_.end()) {
    files_.splice(files_.begin(), files_, found);
    return files_.front();
  }
  if (files_.size() == capacity_) files_.pop_back();
  while (true) {
    try {
      files_.push_front(Hdf5File::open(path));
      return files_.front();
    } catch (const TooManyOpenFiles&) {
      if (files_.empty()) throw;
      files_.pop_back();
    }
  }
}

void OpenFiles::close(const std::string& path) {
  files_.remove_if([&](const Hdf5File& file) { return file.path() == path; });
}

}  // namespace sala
