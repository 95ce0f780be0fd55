// The only door to HDF5: files of typed datasets and attributes, read and written in slabs.
//
// HDF5 has one lock for the whole process. We hold it (fairly, first come first served) for one
// slab of at most kSlabBytes, never for a whole dataset, so that the thread that writes a
// checkpoint and the thread that reads training data take turns. Any number of threads may use
// different Hdf5File objects; one object belongs to one thread at a time.
//
// Errors: std::runtime_error with one line that names file, dataset, offset, HDF5's own reason and
// what to do: about the system where it refused (readers: FileError), about the file only where
// HDF5 cannot understand it. HDF5's printing to stderr is off.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/files/file_identity.h"

namespace sala {

// The system refused one more open file: closing another one helps.
class TooManyOpenFiles : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// kBF16 is stored as u16 with a mark on the dataset; its values travel as raw uint16_t.
enum class Hdf5Type { kU8, kU16, kI16, kU32, kI32, kI64, kF32, kF64, kBF16 };

const char* hdf5_type_name(Hdf5Type type);
std::int64_t element_size(Hdf5Type type);

template <class T>
constexpr Hdf5Type hdf5_type_of();
template <>
constexpr Hdf5Type hdf5_type_of<std::uint8_t>() {
  return Hdf5Type::kU8;
}
template <>
constexpr Hdf5Type hdf5_type_of<std::uint16_t>() {
  return Hdf5Type::kU16;
}
template <>
constexpr Hdf5Type hdf5_type_of<std::int16_t>() {
  return Hdf5Type::kI16;
}
template <>
constexpr Hdf5Type hdf5_type_of<std::uint32_t>() {
  return Hdf5Type::kU32;
}
template <>
constexpr Hdf5Type hdf5_type_of<std::int32_t>() {
  return Hdf5Type::kI32;
}
template <>
constexpr Hdf5Type hdf5_type_of<std::int64_t>() {
  return Hdf5Type::kI64;
}
template <>
constexpr Hdf5Type hdf5_type_of<float>() {
  return Hdf5Type::kF32;
}
template <>
constexpr Hdf5Type hdf5_type_of<double>() {
  return Hdf5Type::kF64;
}

constexpr std::int64_t kSlabBytes = std::int64_t{4} << 20;

class Hdf5File {
 public:
  // Opens an existing file for reading. Missing, truncated or foreign file: std::runtime_error.
  static Hdf5File open(const std::string& path);

  // Starts a new file, written under `path`.tmp until commit() gives it its name. Destroyed without
  // commit(): the temporary file is removed, and whatever was at `path` stays.
  static Hdf5File create(const std::string& path);

  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  ~Hdf5File();

  const std::string& path() const;
  FileIdentity identity() const;  // as the open file is now

  // Writer: flush, close, fsync, rename to path(), fsync the folder. The object is closed after it.
  void commit();
  // Reader: closes now. Writer: the same as destruction without commit().
  void close();

  // Datasets. Names may hold '/': groups in between are made as needed.
  bool exists(const std::string& name) const;
  std::vector<std::string> list_datasets() const;  // full names without leading '/', sorted
  std::vector<std::int64_t> shape(const std::string& name) const;
  std::int64_t num_elements(const std::string& name) const;
  Hdf5Type type(const std::string& name) const;

  // chunk_elements > 0: chunked storage (1-D only), else contiguous. No compression.
  void create_dataset(const std::string& name, Hdf5Type type,
                      const std::vector<std::int64_t>& shape, std::int64_t chunk_elements = 0);
  // In chunks of at most `chunk`, bytes shuffled and deflated (gzip): for files that should be
  // small and are read as a whole, since a reader inflates all of a chunk whatever it wants of it.
  void create_compressed_dataset(const std::string& name, Hdf5Type type,
                                 const std::vector<std::int64_t>& shape,
                                 const std::vector<std::int64_t>& chunk);

  // Rows [offset, offset + count) along the first dimension; `count` times the product of the other
  // dimensions elements move. For 1-D datasets a row is an element. The stored type must be T's
  // (uint16_t also reads and writes bf16).
  template <class T>
  void read(const std::string& name, std::int64_t offset, std::int64_t count, T* out) const {
    read_raw(name, hdf5_type_of<T>(), offset, count, out);
  }
  template <class T>
  void write(const std::string& name, std::int64_t offset, std::int64_t count, const T* values) {
    write_raw(name, hdf5_type_of<T>(), offset, count, values);
  }
  void read_raw(const std::string& name, Hdf5Type type, std::int64_t offset, std::int64_t count,
                void* out) const;
  void write_raw(const std::string& name, Hdf5Type type, std::int64_t offset, std::int64_t count,
                 const void* values);

  // Whole 1-D dataset, in one call.
  template <class T>
  std::vector<T> read_all(const std::string& name) const {
    std::vector<T> values(static_cast<size_t>(num_elements(name)));
    read(name, 0, shape(name).empty() ? 0 : shape(name)[0], values.data());
    return values;
  }
  template <class T>
  void write_all(const std::string& name, const std::vector<T>& values,
                 std::int64_t chunk_elements = 0) {
    const auto count = static_cast<std::int64_t>(values.size());
    create_dataset(name, hdf5_type_of<T>(), {count}, chunk_elements);
    write(name, 0, count, values.data());
  }

  // Attributes of the root, or of dataset `object`. A missing attribute or one of another kind is
  // an error. Strings: fixed and variable length.
  bool has_attribute(const std::string& key, const std::string& object = "/") const;
  std::int64_t attribute_int(const std::string& key, const std::string& object = "/") const;
  double attribute_double(const std::string& key, const std::string& object = "/") const;
  std::string attribute_string(const std::string& key, const std::string& object = "/") const;
  void set_attribute(const std::string& key, std::int64_t value, const std::string& object = "/");
  void set_attribute(const std::string& key, double value, const std::string& object = "/");
  void set_attribute(const std::string& key, const std::string& value,
                     const std::string& object = "/");

 private:
  struct Impl;
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sala
