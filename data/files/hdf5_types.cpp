// Element types: their names and sizes, and what they are to HDF5.
#include <stdexcept>

#include "data/files/hdf5_impl.h"

namespace sala {

const char* hdf5_type_name(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kU8:
      return "u8";
    case Hdf5Type::kU16:
      return "u16";
    case Hdf5Type::kI16:
      return "i16";
    case Hdf5Type::kU32:
      return "u32";
    case Hdf5Type::kI32:
      return "i32";
    case Hdf5Type::kI64:
      return "i64";
    case Hdf5Type::kF32:
      return "f32";
    case Hdf5Type::kF64:
      return "f64";
    case Hdf5Type::kBF16:
      return "bf16";
  }
  return "unknown";
}

std::int64_t element_size(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kU8:
      return 1;
    case Hdf5Type::kU16:
    case Hdf5Type::kI16:
    case Hdf5Type::kBF16:
      return 2;
    case Hdf5Type::kU32:
    case Hdf5Type::kI32:
    case Hdf5Type::kF32:
      return 4;
    case Hdf5Type::kI64:
    case Hdf5Type::kF64:
      return 8;
  }
  throw std::logic_error("element_size: unknown Hdf5Type");
}

namespace hdf5 {

hid_t native_type(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kU8:
      return H5T_NATIVE_UINT8;
    case Hdf5Type::kU16:
    case Hdf5Type::kBF16:
      return H5T_NATIVE_UINT16;
    case Hdf5Type::kI16:
      return H5T_NATIVE_INT16;
    case Hdf5Type::kU32:
      return H5T_NATIVE_UINT32;
    case Hdf5Type::kI32:
      return H5T_NATIVE_INT32;
    case Hdf5Type::kI64:
      return H5T_NATIVE_INT64;
    case Hdf5Type::kF32:
      return H5T_NATIVE_FLOAT;
    case Hdf5Type::kF64:
      return H5T_NATIVE_DOUBLE;
  }
  throw std::logic_error("native_type: unknown Hdf5Type");
}

Hdf5Type stored_type(const std::string& path, const std::string& name, hid_t dataset) {
  const Handle type(H5Dget_type(dataset), H5Tclose);
  const H5T_class_t kind = H5Tget_class(type);
  const size_t size = H5Tget_size(type);
  if (kind == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    if (!is_signed && size == 1) return Hdf5Type::kU8;
    if (!is_signed && size == 2) {
      return H5Aexists(dataset, kBF16Mark) > 0 ? Hdf5Type::kBF16 : Hdf5Type::kU16;
    }
    if (is_signed && size == 2) return Hdf5Type::kI16;
    if (!is_signed && size == 4) return Hdf5Type::kU32;
    if (is_signed && size == 4) return Hdf5Type::kI32;
    if (is_signed && size == 8) return Hdf5Type::kI64;
  }
  if (kind == H5T_FLOAT && size == 4) return Hdf5Type::kF32;
  if (kind == H5T_FLOAT && size == 8) return Hdf5Type::kF64;
  fail(path, "dataset `" + name + "` has an element type we do not use (" + std::to_string(size) +
                 " bytes); expected u8, u16, i16, u32, i32, i64, f32, f64 or bf16");
}

}  // namespace hdf5

}  // namespace sala
