// How an HDF5 file is opened, finished and closed, and what it holds.
#include "data/files/hdf5_file.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hdf5_heaps.h"
#include "data/files/hdf5_impl.h"

namespace sala {

using hdf5::fail;
using hdf5::fail_reading;
using hdf5::fail_writing;
using hdf5::Handle;
using hdf5::library_reason;
using hdf5::Reason;
using hdf5::Turn;

namespace {

constexpr int kMostGroupDepth = 8;  // a group may be linked into itself

void list_group(hid_t group, const std::string& prefix, int depth,
                std::vector<std::string>& names) {
  H5G_info_t info;
  if (H5Gget_info(group, &info) < 0) return;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    char name[1024];
    if (H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof name,
                           H5P_DEFAULT) < 0) {
      continue;
    }
    const Handle object(H5Oopen(group, name, H5P_DEFAULT), H5Oclose);
    if (!object.ok()) continue;
    const std::string full = prefix + name;
    const H5I_type_t kind = H5Iget_type(object);
    if (kind == H5I_DATASET) names.push_back(full);
    if (kind == H5I_GROUP && depth < kMostGroupDepth) {
      list_group(object, full + "/", depth + 1, names);
    }
  }
}

}  // namespace

Hdf5File::Impl::~Impl() {
  const bool abandoned = file >= 0 && !temporary.empty();
  close_library();
  std::error_code ignored;
  if (abandoned) std::filesystem::remove(temporary, ignored);
}

Reason Hdf5File::Impl::close_library() {
  if (file < 0) return {};
  const Turn turn;
  Reason reason;
  const auto check = [&](herr_t status) {
    if (status < 0 && reason.text.empty()) reason = library_reason();
  };
  for (const auto& [name, dataset] : datasets) check(H5Dclose(dataset.id));
  datasets.clear();
  if (!temporary.empty()) check(H5Fflush(file, H5F_SCOPE_GLOBAL));
  check(H5Fclose(file));
  file = -1;
  return reason;
}

void Hdf5File::Impl::check_open() const {
  if (file < 0) fail(path, "the file object is closed already");
}

void Hdf5File::Impl::check_writer() const {
  check_open();
  if (temporary.empty()) fail(path, "opened for reading, cannot write");
}

bool Hdf5File::Impl::link_exists(const std::string& name) const {
  // H5Lexists wants every group on the way to exist.
  for (size_t end = name.find('/', 1); end != std::string::npos; end = name.find('/', end + 1)) {
    if (H5Lexists(file, name.substr(0, end).c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return H5Lexists(file, name.c_str(), H5P_DEFAULT) > 0;
}

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;
Hdf5File& Hdf5File::operator=(Hdf5File&&) noexcept = default;
Hdf5File::~Hdf5File() = default;

const std::string& Hdf5File::path() const { return impl_->path; }

Hdf5File Hdf5File::open(const std::string& path) {
  static_cast<void>(file_identity(path));  // a missing file, a folder or a pipe is said here
  check_string_heaps(path);
  const Turn turn;
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  // Several ranks read one file, on file systems that may have no locks; nobody writes in place.
  H5Pset_file_locking(access, false, true);
  // No chunk cache: a reader takes pieces from here and there, and a megabyte for each of hundreds
  // of open datasets is more than the data it needs. Unfiltered chunks are read in part.
  H5Pset_cache(access, 0, 0, 0, 0);
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  if (impl->file < 0) fail_reading(path, "cannot open as HDF5", library_reason());
  return Hdf5File(std::move(impl));
}

Hdf5File Hdf5File::create(const std::string& path) {
  const Turn turn;
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  H5Pset_file_locking(access, false, true);
  auto impl = std::make_unique<Impl>();
  impl->path = replaceable_file(path);
  impl->temporary = start_temporary(impl->path);
  impl->file = H5Fcreate(impl->temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  if (impl->file < 0) fail_writing(path, "cannot create", library_reason());
  return Hdf5File(std::move(impl));
}

void Hdf5File::commit() {
  impl_->check_writer();
  const Reason reason = impl_->close_library();
  if (!reason.text.empty()) {
    std::error_code ignored;
    std::filesystem::remove(impl_->temporary, ignored);
    fail_writing(path(), "cannot finish the file", reason);
  }
  rename_durably(impl_->temporary, impl_->path);
}

void Hdf5File::close() {
  auto closed = std::make_unique<Impl>();
  closed->path = impl_->path;
  impl_ = std::move(closed);
}

FileIdentity Hdf5File::identity() const {
  impl_->check_open();
  const Turn turn;
  void* descriptor = nullptr;
  if (H5Fget_vfd_handle(impl_->file, H5P_DEFAULT, &descriptor) < 0) {
    fail_reading(path(), "cannot look at the open file", library_reason());
  }
  return file_identity(*static_cast<int*>(descriptor), path());
}

bool Hdf5File::exists(const std::string& name) const {
  impl_->check_open();
  const Turn turn;
  return impl_->link_exists(name);
}

std::vector<std::string> Hdf5File::list_datasets() const {
  impl_->check_open();
  const Turn turn;
  std::vector<std::string> names;
  const Handle root(H5Gopen2(impl_->file, "/", H5P_DEFAULT), H5Gclose);
  list_group(root, "", 0, names);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace sala
