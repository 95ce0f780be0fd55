// HDF5's C API for the files behind data/files/hdf5_file.h, and for nobody else: whose turn it is,
// ids that close themselves, and why a call failed.
#pragma once

#include <hdf5.h>

#include <string>

namespace sala::hdf5 {

// Holds the library; also silences its printing, which is a setting per thread. Public functions
// take it for as long as they call the library, reads and writes for one slab. Whoever has it must
// not take it again.
class Turn {
 public:
  Turn();
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
};

// An HDF5 id with its closing function.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }  // NOLINT: an id is what it is
  bool ok() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// Why a call of the library failed: on one line, with the system's error number if it was the
// system that refused.
struct Reason {
  std::string text;  // empty: nothing failed
  int code = 0;      // errno, 0 if HDF5 itself found the fault
};

// The innermost message of HDF5's error stack; the system's own words where it has any.
Reason library_reason();

[[noreturn]] void fail(const std::string& path, const std::string& what);
// Only where HDF5 itself does not understand the bytes is the file to blame.
[[noreturn]] void fail_reading(const std::string& path, const std::string& what,
                               const Reason& reason);
[[noreturn]] void fail_writing(const std::string& path, const std::string& what,
                               const Reason& reason);

}  // namespace sala::hdf5
