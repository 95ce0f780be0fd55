// An open HDF5 file as hdf5_file.cpp (opened, finished, closed), hdf5_datasets.cpp and
// hdf5_attributes.cpp share it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "data/files/hdf5_file.h"
#include "data/files/hdf5_library.h"

namespace sala {

namespace hdf5 {

// What is known of an open dataset; the id lives as long as the file, so its chunk cache does too.
struct OpenDataset {
  hid_t id;
  Hdf5Type type;
  std::vector<std::int64_t> shape;
  std::int64_t row_elements;  // product of all dimensions but the first

  std::int64_t num_rows() const { return shape.empty() ? 1 : shape[0]; }
};

// As which HDF5 stores it, and as which it lies in memory.
hid_t native_type(Hdf5Type type);
// Of an open dataset; throws for types we never write.
Hdf5Type stored_type(const std::string& path, const std::string& name, hid_t dataset);

inline constexpr const char* kBF16Mark = "element_type";  // the attribute that tells it from u16

}  // namespace hdf5

struct Hdf5File::Impl {
  std::string path;
  std::string temporary;  // where a writer writes; empty for readers
  hid_t file = -1;
  std::map<std::string, hdf5::OpenDataset> datasets;

  ~Impl();
  // Returns HDF5's reason if closing (which flushes) failed, else an empty one.
  hdf5::Reason close_library();
  void check_open() const;
  void check_writer() const;
  bool link_exists(const std::string& name) const;  // for whoever holds the library
  // Opened at its first use, known from then on.
  const hdf5::OpenDataset& dataset(const std::string& name);
};

}  // namespace sala
