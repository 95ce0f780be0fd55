// Datasets: made, looked at, read and written in slabs.
#include <algorithm>

#include "data/files/hdf5_impl.h"

namespace sala {

using hdf5::fail;
using hdf5::fail_reading;
using hdf5::fail_writing;
using hdf5::Handle;
using hdf5::kBF16Mark;
using hdf5::library_reason;
using hdf5::native_type;
using hdf5::OpenDataset;
using hdf5::Reason;
using hdf5::Turn;

namespace {

std::vector<std::int64_t> stored_shape(hid_t dataset) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space);
  std::vector<hsize_t> sizes(static_cast<size_t>(std::max(rank, 0)));
  if (rank > 0) H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
  return {sizes.begin(), sizes.end()};
}

bool same_storage(Hdf5Type a, Hdf5Type b) {
  const auto plain = [](Hdf5Type t) { return t == Hdf5Type::kBF16 ? Hdf5Type::kU16 : t; };
  return plain(a) == plain(b);
}

// Rows [offset, offset + count) of a dataset, as a caller asks for them.
struct Request {
  const std::string& path;
  const std::string& name;
  const OpenDataset& dataset;
  Hdf5Type type;
  std::int64_t offset, count;

  std::string rows_text() const {
    return std::to_string(offset) + ".." + std::to_string(offset + count);
  }
  std::int64_t row_bytes() const { return dataset.row_elements * element_size(type); }
};

void check(const Request& r) {
  if (!same_storage(r.dataset.type, r.type)) {
    fail(r.path, "dataset `" + r.name + "` expected " + hdf5_type_name(r.type) + ", found " +
                     hdf5_type_name(r.dataset.type));
  }
  const std::int64_t rows = r.dataset.num_rows();
  if (r.offset < 0 || r.count < 0 || r.offset > rows || r.count > rows - r.offset) {
    fail(r.path, "dataset `" + r.name + "` has " + std::to_string(rows) + " rows, asked for " +
                     r.rows_text());
  }
}

// One HDF5 call; `transfer` gets dataset, type in memory, and both spaces. Returns why it failed.
template <class Transfer>
Reason move_slab(const Request& slab, const Transfer& transfer) {
  const OpenDataset& dataset = slab.dataset;
  const Handle file_space(H5Dget_space(dataset.id), H5Sclose);
  const auto elements = static_cast<hsize_t>(slab.count * dataset.row_elements);
  const Handle memory_space(H5Screate_simple(1, &elements, nullptr), H5Sclose);
  if (!dataset.shape.empty()) {
    std::vector<hsize_t> start(dataset.shape.size(), 0);
    std::vector<hsize_t> size(dataset.shape.begin(), dataset.shape.end());
    start[0] = static_cast<hsize_t>(slab.offset);
    size[0] = static_cast<hsize_t>(slab.count);
    H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr);
  }
  const herr_t status = transfer(dataset.id, native_type(dataset.type), memory_space, file_space);
  return status < 0 ? library_reason() : Reason{};  // before closing the spaces forgets it
}

// Hands each slab to `move`, with where it lies in memory: bytes from the first row.
template <class Move>
void for_each_slab(const Request& whole, const Move& move) {
  const std::int64_t row_bytes = whole.row_bytes();
  const std::int64_t most_rows =
      std::max<std::int64_t>(1, kSlabBytes / std::max<std::int64_t>(1, row_bytes));
  for (std::int64_t done = 0; done < whole.count;) {
    Request slab = whole;
    slab.offset += done;
    slab.count = std::min(most_rows, whole.count - done);
    const Turn turn;
    move(slab, done * row_bytes);
    done += slab.count;
  }
}

std::string slab_text(const Request& slab) {
  return "dataset `" + slab.name + "` at offset " + slab.rows_text();
}

void create_with(const std::string& path, hid_t file, const std::string& name, Hdf5Type type,
                 const std::vector<std::int64_t>& shape, hid_t layout) {
  const std::vector<hsize_t> sizes(shape.begin(), shape.end());
  const Handle space(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr),
                     H5Sclose);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Handle created(
      H5Dcreate2(file, name.c_str(), native_type(type), space, links, layout, H5P_DEFAULT),
      H5Dclose);
  if (!created.ok()) fail_writing(path, "cannot create dataset `" + name + "`", library_reason());
}

}  // namespace

const OpenDataset& Hdf5File::Impl::dataset(const std::string& name) {
  check_open();
  if (const auto found = datasets.find(name); found != datasets.end()) return found->second;
  const Turn turn;
  if (!link_exists(name)) {
    fail(path, "dataset `" + name + "` is missing; was the file written by another program?");
  }
  const hid_t id = H5Dopen2(file, name.c_str(), H5P_DEFAULT);
  if (id < 0) fail_reading(path, "cannot open dataset `" + name + "`", library_reason());
  OpenDataset opened{id, Hdf5Type::kU8, stored_shape(id), 1};
  try {
    opened.type = hdf5::stored_type(path, name, id);
  } catch (const std::exception&) {
    H5Dclose(id);
    throw;
  }
  for (size_t i = 1; i < opened.shape.size(); ++i) opened.row_elements *= opened.shape[i];
  return datasets.emplace(name, opened).first->second;
}

std::vector<std::int64_t> Hdf5File::shape(const std::string& name) const {
  return impl_->dataset(name).shape;
}

std::int64_t Hdf5File::num_elements(const std::string& name) const {
  const OpenDataset& target = impl_->dataset(name);
  return target.num_rows() * target.row_elements;
}

Hdf5Type Hdf5File::type(const std::string& name) const { return impl_->dataset(name).type; }

void Hdf5File::create_dataset(const std::string& name, Hdf5Type type,
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
  if (type == Hdf5Type::kBF16) set_attribute(kBF16Mark, std::string("bf16"), name);
}

void Hdf5File::create_compressed_dataset(const std::string& name, Hdf5Type type,
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
  if (type == Hdf5Type::kBF16) set_attribute(kBF16Mark, std::string("bf16"), name);
}

void Hdf5File::read_raw(const std::string& name, Hdf5Type type, std::int64_t offset,
                        std::int64_t count, void* out) const {
  const Request whole{path(), name, impl_->dataset(name), type, offset, count};
  check(whole);
  auto* bytes = static_cast<std::uint8_t*>(out);
  for_each_slab(whole, [&](const Request& slab, std::int64_t at) {
    const auto transfer = [&](hid_t dataset, hid_t memory, hid_t memory_space, hid_t file_space) {
      return H5Dread(dataset, memory, memory_space, file_space, H5P_DEFAULT, bytes + at);
    };
    const Reason reason = move_slab(slab, transfer);
    if (!reason.text.empty()) fail_reading(path(), "cannot read " + slab_text(slab), reason);
  });
}

void Hdf5File::write_raw(const std::string& name, Hdf5Type type, std::int64_t offset,
                         std::int64_t count, const void* values) {
  impl_->check_writer();
  const Request whole{path(), name, impl_->dataset(name), type, offset, count};
  check(whole);
  const auto* bytes = static_cast<const std::uint8_t*>(values);
  for_each_slab(whole, [&](const Request& slab, std::int64_t at) {
    const auto transfer = [&](hid_t dataset, hid_t memory, hid_t memory_space, hid_t file_space) {
      return H5Dwrite(dataset, memory, memory_space, file_space, H5P_DEFAULT, bytes + at);
    };
    const Reason reason = move_slab(slab, transfer);
    if (!reason.text.empty()) fail_writing(path(), "cannot write " + slab_text(slab), reason);
  });
}

}  // namespace sala
