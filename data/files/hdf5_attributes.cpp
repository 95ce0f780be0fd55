// Attributes of a file and of its datasets.
#include <algorithm>

#include "data/files/hdf5_impl.h"

namespace sala {

using hdf5::fail;
using hdf5::fail_reading;
using hdf5::fail_writing;
using hdf5::Handle;
using hdf5::library_reason;
using hdf5::Turn;

namespace {

std::string attribute_name(const std::string& key, const std::string& object) {
  return "attribute `" + key + "`" + (object == "/" ? "" : " of `" + object + "`");
}

// Whether a value of this type is small. In a damaged file one element may be said to take
// gigabytes, and HDF5 would ask for them.
bool is_small(hid_t type) {
  constexpr size_t kMostBytes = 64 << 10;
  if (H5Tis_variable_str(type) <= 0) return H5Tget_size(type) <= kMostBytes;
  const Handle character(H5Tget_super(type), H5Tclose);
  return character.ok() && H5Tget_size(character) == 1;
}

// Opens an attribute that holds exactly one value of class `kind`, and hands (id, type) to `use`.
template <class Use>
void with_attribute(const std::string& path, hid_t file, const std::string& key,
                    const std::string& object, H5T_class_t kind, const char* kind_name,
                    const Use& use) {
  const std::string what = attribute_name(key, object);
  if (H5Aexists_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT) <= 0) {
    fail(path, what + " is missing; was the file written by another program?");
  }
  const Handle attribute(
      H5Aopen_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!attribute.ok()) fail_reading(path, "cannot open " + what, library_reason());
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  if (H5Tget_class(type) != kind || H5Sget_simple_extent_npoints(space) != 1 || !is_small(type)) {
    fail(path, what + " is not one " + kind_name);
  }
  if (use(static_cast<hid_t>(attribute), static_cast<hid_t>(type)) < 0) {
    fail_reading(path, "cannot read " + what, library_reason());
  }
}

// Writes one value of HDF5 type `type`, replacing an attribute of that name.
void put_attribute(const std::string& path, hid_t file, const std::string& key,
                   const std::string& object, hid_t type, const void* value) {
  if (H5Aexists_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT) > 0) {
    H5Adelete_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT);
  }
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate_by_name(file, object.c_str(), key.c_str(), type, space,
                                           H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
  if (!attribute.ok() || H5Awrite(attribute, type, value) < 0) {
    fail_writing(path, "cannot write " + attribute_name(key, object), library_reason());
  }
}

}  // namespace

bool Hdf5File::has_attribute(const std::string& key, const std::string& object) const {
  impl_->check_open();
  const Turn turn;
  return H5Aexists_by_name(impl_->file, object.c_str(), key.c_str(), H5P_DEFAULT) > 0;
}
std::int64_t Hdf5File::attribute_int(const std::string& key, const std::string& object) const {
  impl_->check_open();
  const Turn turn;
  std::int64_t value = 0;
  with_attribute(path(), impl_->file, key, object, H5T_INTEGER, "integer",
                 [&](hid_t id, hid_t) { return H5Aread(id, H5T_NATIVE_INT64, &value); });
  return value;
}

double Hdf5File::attribute_double(const std::string& key, const std::string& object) const {
  impl_->check_open();
  const Turn turn;
  double value = 0;
  with_attribute(path(), impl_->file, key, object, H5T_FLOAT, "floating-point number",
                 [&](hid_t id, hid_t) { return H5Aread(id, H5T_NATIVE_DOUBLE, &value); });
  return value;
}

std::string Hdf5File::attribute_string(const std::string& key, const std::string& object) const {
  impl_->check_open();
  const Turn turn;
  std::string value;
  const auto read = [&](hid_t id, hid_t type) -> herr_t {
    if (H5Tis_variable_str(type) > 0) {
      char* text = nullptr;
      const herr_t status = H5Aread(id, type, &text);
      if (status >= 0 && text != nullptr) value = text;
      H5free_memory(text);
      return status;
    }
    value.resize(H5Tget_size(type));
    const herr_t status = H5Aread(id, type, value.data());
    value.resize(std::min(value.find('\0'), value.size()));
    return status;
  };
  with_attribute(path(), impl_->file, key, object, H5T_STRING, "string", read);
  return value;
}

void Hdf5File::set_attribute(const std::string& key, std::int64_t value,
                             const std::string& object) {
  impl_->check_writer();
  const Turn turn;
  put_attribute(path(), impl_->file, key, object, H5T_NATIVE_INT64, &value);
}

void Hdf5File::set_attribute(const std::string& key, double value, const std::string& object) {
  impl_->check_writer();
  const Turn turn;
  put_attribute(path(), impl_->file, key, object, H5T_NATIVE_DOUBLE, &value);
}

void Hdf5File::set_attribute(const std::string& key, const std::string& value,
                             const std::string& object) {
  impl_->check_writer();
  const Turn turn;
  // Variable length and UTF-8: what h5py reads back as str.
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const char* text = value.c_str();
  put_attribute(path(), impl_->file, key, object, type, &text);
}
}  // namespace sala
