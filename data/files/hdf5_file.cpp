// HDF5's C API behind data/files/hdf5_file.h. Longer than our usual file because HDF5 has only this
// door.
//
// Every public function takes HDF5's turn (Turn) for as long as it calls the library, and for one
// slab in read_raw and write_raw.
#include "data/files/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hdf5_heaps.h"
#include "data/files/system_advice.h"

namespace sala {
namespace {

// First come, first served: with std::mutex a writer that frees and takes it in a loop can keep a
// reader out for the whole checkpoint.
class FairMutex {
 public:
  void lock() {
    std::unique_lock<std::mutex> guard(mutex_);
    const std::uint64_t ticket = next_++;
    turn_.wait(guard, [&] { return ticket == serving_; });
  }
  void unlock() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      ++serving_;
    }
    turn_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  std::uint64_t next_ = 0;
  std::uint64_t serving_ = 0;
};

// Holds the library; also silences its printing, which is a setting per thread.
class Turn {
 public:
  Turn() : guard_(library()) { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

 private:
  static FairMutex& library() {
    // Without HDF5's exit handler: after a failed write (full disk) it flushes once more and
    // crashes. We close every file ourselves.
    static const herr_t no_exit_handler = H5dont_atexit();
    static_cast<void>(no_exit_handler);
    static FairMutex mutex;
    return mutex;
  }
  std::lock_guard<FairMutex> guard_;
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

herr_t keep_description(unsigned, const H5E_error2_t* error, void* text) {
  if (error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
  return 0;
}

// Why a call of the library failed: on one line, with the system's error number if it was the
// system that refused.
struct Reason {
  std::string text;  // empty: nothing failed
  int code = 0;      // errno, 0 if HDF5 itself found the fault
};

// The innermost message of HDF5's error stack; the system's own words where it has any.
Reason library_reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_description, &text);
  H5Eclear2(H5E_DEFAULT);
  int code = 0;
  // The file's name stands before these in HDF5's text, so we look for the last of them.
  const std::string number = ", errno = ", words = ", error message = '";
  const size_t at = text.rfind(number), start = text.rfind(words);
  if (at != std::string::npos && start != std::string::npos) {
    code = std::atoi(text.c_str() + at + number.size());
    const size_t from = start + words.size();
    text = text.substr(from, text.find('\'', from) - from);
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return {text.empty() ? "no reason given by HDF5" : text, code};
}

const char* const kDamaged =
    "; the file is truncated or damaged: restore it from a copy or write it again";
const char* const kWriteAgain = "; check free space and permissions, then run again";

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

// Only where HDF5 itself does not understand the bytes is the file to blame.
[[noreturn]] void fail_reading(const std::string& path, const std::string& what,
                               const Reason& reason) {
  const std::string text = what + ": " + reason.text;
  if (reason.code == EMFILE || reason.code == ENFILE) {
    throw TooManyOpenFiles(path + ": " + text + system_advice(reason.code));
  }
  fail(path, text + (reason.code != 0 ? system_advice(reason.code) : kDamaged));
}

[[noreturn]] void fail_writing(const std::string& path, const std::string& what,
                               const Reason& reason) {
  const std::string advice = system_advice(reason.code);
  fail(path, what + ": " + reason.text + (advice.empty() ? kWriteAgain : advice));
}

hid_t memory_type(ElementType type) {
  switch (type) {
    case ElementType::kU8:
      return H5T_NATIVE_UINT8;
    case ElementType::kU16:
    case ElementType::kBF16:
      return H5T_NATIVE_UINT16;
    case ElementType::kI16:
      return H5T_NATIVE_INT16;
    case ElementType::kU32:
      return H5T_NATIVE_UINT32;
    case ElementType::kI32:
      return H5T_NATIVE_INT32;
    case ElementType::kI64:
      return H5T_NATIVE_INT64;
    case ElementType::kF32:
      return H5T_NATIVE_FLOAT;
    case ElementType::kF64:
      return H5T_NATIVE_DOUBLE;
  }
  throw std::logic_error("memory_type: unknown ElementType");
}

const char* const kBF16Mark = "element_type";

// The element type of an open dataset; throws for types we never write.
ElementType stored_type(const std::string& path, const std::string& name, hid_t dataset) {
  const Handle type(H5Dget_type(dataset), H5Tclose);
  const H5T_class_t kind = H5Tget_class(type);
  const size_t size = H5Tget_size(type);
  if (kind == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    if (!is_signed && size == 1) return ElementType::kU8;
    if (!is_signed && size == 2) {
      return H5Aexists(dataset, kBF16Mark) > 0 ? ElementType::kBF16 : ElementType::kU16;
    }
    if (is_signed && size == 2) return ElementType::kI16;
    if (!is_signed && size == 4) return ElementType::kU32;
    if (is_signed && size == 4) return ElementType::kI32;
    if (is_signed && size == 8) return ElementType::kI64;
  }
  if (kind == H5T_FLOAT && size == 4) return ElementType::kF32;
  if (kind == H5T_FLOAT && size == 8) return ElementType::kF64;
  fail(path, "dataset `" + name + "` has an element type we do not use (" + std::to_string(size) +
                 " bytes); expected u8, u16, i16, u32, i32, i64, f32, f64 or bf16");
}

bool same_storage(ElementType a, ElementType b) {
  const auto plain = [](ElementType t) { return t == ElementType::kBF16 ? ElementType::kU16 : t; };
  return plain(a) == plain(b);
}

std::vector<std::int64_t> stored_shape(hid_t dataset) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space);
  std::vector<hsize_t> sizes(static_cast<size_t>(std::max(rank, 0)));
  if (rank > 0) H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
  return {sizes.begin(), sizes.end()};
}

void list_group(hid_t group, const std::string& prefix, std::vector<std::string>& names) {
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
    if (kind == H5I_GROUP) list_group(object, full + "/", names);
  }
}

std::string rows_text(std::int64_t offset, std::int64_t count) {
  return std::to_string(offset) + ".." + std::to_string(offset + count);
}

}  // namespace

const char* element_type_name(ElementType type) {
  switch (type) {
    case ElementType::kU8:
      return "u8";
    case ElementType::kU16:
      return "u16";
    case ElementType::kI16:
      return "i16";
    case ElementType::kU32:
      return "u32";
    case ElementType::kI32:
      return "i32";
    case ElementType::kI64:
      return "i64";
    case ElementType::kF32:
      return "f32";
    case ElementType::kF64:
      return "f64";
    case ElementType::kBF16:
      return "bf16";
  }
  return "unknown";
}

std::int64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::kU8:
      return 1;
    case ElementType::kU16:
    case ElementType::kI16:
    case ElementType::kBF16:
      return 2;
    case ElementType::kU32:
    case ElementType::kI32:
    case ElementType::kF32:
      return 4;
    case ElementType::kI64:
    case ElementType::kF64:
      return 8;
  }
  throw std::logic_error("element_size: unknown ElementType");
}

// What is known of an open dataset; the id lives as long as the file, so its chunk cache does too.
struct OpenDataset {
  hid_t id;
  ElementType type;
  std::vector<std::int64_t> shape;
  std::int64_t row_elements;  // product of all dimensions but the first
};

struct Hdf5File::Impl {
  std::string path;
  std::string temporary;  // where a writer writes; empty for readers
  hid_t file = -1;
  std::map<std::string, OpenDataset> datasets;

  ~Impl() {
    const bool abandoned = file >= 0 && !temporary.empty();
    close_library();
    std::error_code ignored;
    if (abandoned) std::filesystem::remove(temporary, ignored);
  }

  // Returns HDF5's reason if closing (which flushes) failed, else an empty one.
  Reason close_library() {
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

  void check_open() const {
    if (file < 0) fail(path, "the file object is closed already");
  }
  void check_writer() const {
    check_open();
    if (temporary.empty()) fail(path, "opened for reading, cannot write");
  }

  bool link_exists(const std::string& name) const {
    // H5Lexists wants every group on the way to exist.
    for (size_t end = name.find('/', 1); end != std::string::npos; end = name.find('/', end + 1)) {
      if (H5Lexists(file, name.substr(0, end).c_str(), H5P_DEFAULT) <= 0) return false;
    }
    return H5Lexists(file, name.c_str(), H5P_DEFAULT) > 0;
  }

  const OpenDataset& dataset(const std::string& name) {
    check_open();
    if (const auto found = datasets.find(name); found != datasets.end()) return found->second;
    if (!link_exists(name)) {
      fail(path, "dataset `" + name + "` is missing; was the file written by another program?");
    }
    const hid_t id = H5Dopen2(file, name.c_str(), H5P_DEFAULT);
    if (id < 0) fail_reading(path, "cannot open dataset `" + name + "`", library_reason());
    OpenDataset opened{id, ElementType::kU8, stored_shape(id), 1};
    try {
      opened.type = stored_type(path, name, id);
    } catch (const std::exception&) {
      H5Dclose(id);
      throw;
    }
    for (size_t i = 1; i < opened.shape.size(); ++i) opened.row_elements *= opened.shape[i];
    return datasets.emplace(name, opened).first->second;
  }

  // Checks a request and returns rows per slab.
  std::int64_t check_request(const std::string& name, ElementType type, std::int64_t offset,
                             std::int64_t count) {
    const Turn turn;
    const OpenDataset& target = dataset(name);
    if (!same_storage(target.type, type)) {
      fail(path, "dataset `" + name + "` expected " + element_type_name(type) + ", found " +
                     element_type_name(target.type));
    }
    const std::int64_t rows = target.shape.empty() ? 1 : target.shape[0];
    if (offset < 0 || count < 0 || offset > rows || count > rows - offset) {
      fail(path, "dataset `" + name + "` has " + std::to_string(rows) + " rows, asked for " +
                     rows_text(offset, count));
    }
    const std::int64_t row_bytes =
        std::max<std::int64_t>(1, target.row_elements * element_size(type));
    return std::max<std::int64_t>(1, kSlabBytes / row_bytes);
  }

  // Moves rows [offset, offset + count) in one HDF5 call; `transfer` gets dataset, type, both
  // spaces.
  template <class Transfer>
  void move_slab(const std::string& name, std::int64_t offset, std::int64_t count,
                 const Transfer& transfer, bool writes) {
    const Turn turn;
    const OpenDataset& target = dataset(name);
    const Handle file_space(H5Dget_space(target.id), H5Sclose);
    const auto elements = static_cast<hsize_t>(count * target.row_elements);
    const Handle memory_space(H5Screate_simple(1, &elements, nullptr), H5Sclose);
    if (!target.shape.empty()) {
      std::vector<hsize_t> start(target.shape.size(), 0);
      std::vector<hsize_t> size(target.shape.begin(), target.shape.end());
      start[0] = static_cast<hsize_t>(offset);
      size[0] = static_cast<hsize_t>(count);
      H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr);
    }
    if (transfer(target.id, memory_type(target.type), memory_space, file_space) < 0) {
      const std::string what = "dataset `" + name + "` at offset " + rows_text(offset, count);
      if (writes) fail_writing(path, "cannot write " + what, library_reason());
      fail_reading(path, "cannot read " + what, library_reason());
    }
  }
};

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
  list_group(root, "", names);
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::int64_t> Hdf5File::shape(const std::string& name) const {
  const Turn turn;
  return impl_->dataset(name).shape;
}

std::int64_t Hdf5File::num_elements(const std::string& name) const {
  const Turn turn;
  const OpenDataset& target = impl_->dataset(name);
  return (target.shape.empty() ? 1 : target.shape[0]) * target.row_elements;
}

ElementType Hdf5File::type(const std::string& name) const {
  const Turn turn;
  return impl_->dataset(name).type;
}

namespace {

void create_with(const std::string& path, hid_t file, const std::string& name, ElementType type,
                 const std::vector<std::int64_t>& shape, hid_t layout) {
  const std::vector<hsize_t> sizes(shape.begin(), shape.end());
  const Handle space(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr),
                     H5Sclose);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Handle created(
      H5Dcreate2(file, name.c_str(), memory_type(type), space, links, layout, H5P_DEFAULT),
      H5Dclose);
  if (!created.ok()) fail_writing(path, "cannot create dataset `" + name + "`", library_reason());
}

}  // namespace

void Hdf5File::create_dataset(const std::string& name, ElementType type,
                              const std::vector<std::int64_t>& shape, std::int64_t chunk_elements) {
  impl_->check_writer();
  {
    const Turn turn;
    const Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    if (chunk_elements > 0 && shape.size() == 1 && shape[0] > 0) {
      const auto chunk = static_cast<hsize_t>(std::min(chunk_elements, shape[0]));
      H5Pset_chunk(layout, 1, &chunk);
    } else {
      H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER);  // else every element is written twice
    }
    create_with(path(), impl_->file, name, type, shape, layout);
  }
  if (type == ElementType::kBF16) set_attribute(kBF16Mark, std::string("bf16"), name);
}

void Hdf5File::create_compressed_dataset(const std::string& name, ElementType type,
                                         const std::vector<std::int64_t>& shape,
                                         const std::vector<std::int64_t>& chunk) {
  impl_->check_writer();
  constexpr unsigned kSmallest = 9;  // of deflate's levels
  std::vector<hsize_t> sizes;
  for (size_t i = 0; i < shape.size(); ++i) {
    sizes.push_back(static_cast<hsize_t>(std::min(chunk.at(i), shape[i])));
  }
  {
    const Turn turn;
    const Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_chunk(layout, static_cast<int>(sizes.size()), sizes.data());
    H5Pset_shuffle(layout);
    H5Pset_deflate(layout, kSmallest);
    create_with(path(), impl_->file, name, type, shape, layout);
  }
  if (type == ElementType::kBF16) set_attribute(kBF16Mark, std::string("bf16"), name);
}

void Hdf5File::read_raw(const std::string& name, ElementType type, std::int64_t offset,
                        std::int64_t count, void* out) const {
  const std::int64_t slab = impl_->check_request(name, type, offset, count);
  auto* bytes = static_cast<std::uint8_t*>(out);
  while (count > 0) {
    const std::int64_t rows = std::min(slab, count);
    impl_->move_slab(
        name, offset, rows,
        [&](hid_t dataset, hid_t memory, hid_t memory_space, hid_t file_space) {
          return H5Dread(dataset, memory, memory_space, file_space, H5P_DEFAULT, bytes);
        },
        /*writes=*/false);
    bytes += rows * impl_->datasets.at(name).row_elements * element_size(type);
    offset += rows;
    count -= rows;
  }
}

void Hdf5File::write_raw(const std::string& name, ElementType type, std::int64_t offset,
                         std::int64_t count, const void* values) {
  impl_->check_writer();
  const std::int64_t slab = impl_->check_request(name, type, offset, count);
  const auto* bytes = static_cast<const std::uint8_t*>(values);
  while (count > 0) {
    const std::int64_t rows = std::min(slab, count);
    impl_->move_slab(
        name, offset, rows,
        [&](hid_t dataset, hid_t memory, hid_t memory_space, hid_t file_space) {
          return H5Dwrite(dataset, memory, memory_space, file_space, H5P_DEFAULT, bytes);
        },
        /*writes=*/true);
    bytes += rows * impl_->datasets.at(name).row_elements * element_size(type);
    offset += rows;
    count -= rows;
  }
}

bool Hdf5File::has_attribute(const std::string& key, const std::string& object) const {
  impl_->check_open();
  const Turn turn;
  return H5Aexists_by_name(impl_->file, object.c_str(), key.c_str(), H5P_DEFAULT) > 0;
}

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
