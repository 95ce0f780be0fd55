// Hashing and writing in slabs; a tensor on a GPU comes to the host one slab at a time.
#include "trainer/checkpoint/writer.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "data/files/hash.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/ranks/environment.h"
#include "trainer/ranks/tensor_fingerprint.h"

namespace sala {
namespace {

constexpr int64_t kSlabElements = kSlabBytes / 4;

// Calls use(values, offset, count) for slabs of elements [begin, end), as fp32 on the host.
template <class Use>
void for_each_slab(const at::Tensor& full, int64_t begin, int64_t end, const Use& use) {
  const at::Tensor flat = full.detach().view({-1});
  for (int64_t at = begin; at < end; at += kSlabElements) {
    const int64_t count = std::min(kSlabElements, end - at);
    const at::Tensor slab = flat.narrow(0, at, count).to(at::kCPU, at::kFloat).contiguous();
    use(slab.const_data_ptr<float>(), at, count);
  }
}

std::string hash_of(const at::Tensor& full) {
  Xxh3Stream hash(Xxh3Width::k128);
  for_each_slab(full, 0, full.numel(), [&](const float* values, int64_t, int64_t count) {
    hash.update(values, static_cast<size_t>(count) * sizeof(float));
  });
  return hash.hex();
}

std::string file_safe(std::string text) {
  for (char& c : text) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  }
  return text;
}

std::string gib(double num_bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g GiB", num_bytes / (1 << 30));
  return text;
}

}  // namespace

CheckpointWriter::CheckpointWriter(int rank, int size, std::string folder,
                                   std::string frozen_folder, std::string frozen_prefix,
                                   std::set<std::string>& sound_frozen)
    : rank_(rank),
      size_(size),
      folder_(std::move(folder)),
      frozen_folder_(std::move(frozen_folder)),
      frozen_prefix_(std::move(frozen_prefix)),
      sound_frozen_(sound_frozen) {
  char name[32];
  std::snprintf(name, sizeof name, "rank-%05d.h5", rank);
  file_name_ = name;
}

template <class Work>
void CheckpointWriter::guarded(const Work& work) {
  if (!error_.empty()) return;
  try {
    work();
  } catch (const c10::Error& error) {
    error_ = error.what_without_backtrace();
  } catch (const std::exception& error) {
    error_ = error.what();
  }
}

void CheckpointWriter::json(const std::string& name, const nlohmann::json& value) {
  guarded([&] {
    TORCH_CHECK(!manifest_.state.contains(name), "state ", name, " was saved twice");
    manifest_.state[name] = value;
  });
}

void CheckpointWriter::begin_tensor(const std::string& part, const std::string& field,
                                    const Layout& layout, const at::Tensor& full) {
  TORCH_CHECK(full.defined() && full.is_contiguous() && full.numel() == layout.num_elements &&
                  at::isFloatingType(full.scalar_type()) && full.scalar_type() != at::kDouble,
              "state ", part, "/", field, ": expected a contiguous tensor of ", layout.num_elements,
              " fp32 elements, got ", full.defined() ? full.numel() : 0, " of ", full.toString());
  TORCH_CHECK(!manifest_.find(part, field), "state ", part, "/", field, " was saved twice");
  const auto [known, added] = manifest_.layouts.emplace(part, layout);
  const std::string difference = added ? "" : layout_difference(layout, known->second);
  TORCH_CHECK(difference.empty(), "state ", part, "/", field,
              ": another layout than before: ", difference);
  manifest_.tensors.push_back({part, field, {}});
  fingerprints_.push_back(size_ > 1 ? tensor_fingerprint(full) : "");
}

void CheckpointWriter::tensor(const std::string& part, const std::string& field,
                              const Layout& layout, const at::Tensor& full) {
  guarded([&] {
    begin_tensor(part, field, layout, full);
    const int64_t begin = full.numel() * rank_ / size_, end = full.numel() * (rank_ + 1) / size_;
    if (begin == end) return;
    const std::string dataset = part + "/" + field;
    check_space(folder_, dataset, full.numel() * static_cast<int64_t>(sizeof(float)));
    if (!file_) file_ = Hdf5File::create(folder_ + "/" + file_name_);
    file_->create_dataset(dataset, ElementType::kF32, {end - begin});
    Xxh3Stream hash(Xxh3Width::k128);
    for_each_slab(full, begin, end, [&](const float* values, int64_t at, int64_t count) {
      hash.update(values, static_cast<size_t>(count) * sizeof(float));
      file_->write(dataset, at - begin, count, values);
    });
    manifest_.tensors.back().shards = {{file_name_, dataset, begin, end - begin, hash.hex()}};
  });
}

// Frozen tensors are dealt out whole, one rank each, so that their files do not depend on the
// number of ranks.
void CheckpointWriter::frozen(const std::string& part, const std::string& field,
                              const Layout& layout, const at::Tensor& full) {
  const bool mine = num_frozen_++ % size_ == rank_;
  guarded([&] {
    begin_tensor(part, field, layout, full);
    if (!mine || full.numel() == 0) return;
    const std::string hash = hash_of(full);
    const std::string file = file_safe(part + "." + field) + "-" + hash + ".h5";
    const Shard shard{file, "values", 0, full.numel(), hash};
    if (!sound_frozen_.contains(file) || !path_exists(frozen_folder_ + "/" + file)) {
      if (!shard_problem(frozen_folder_, shard).empty()) {
        write_frozen(frozen_folder_ + "/" + file, part + "/" + field, hash, full);
      }
      sound_frozen_.insert(file);
    }
    manifest_.tensors.back().shards = {shard};
    manifest_.tensors.back().shards[0].file = frozen_prefix_ + "/" + file;
  });
}

void CheckpointWriter::write_frozen(const std::string& path, const std::string& name,
                                    const std::string& hash, const at::Tensor& full) {
  check_space(frozen_folder_, name, full.numel() * static_cast<int64_t>(sizeof(float)));
  Hdf5File file = Hdf5File::create(path);
  file.create_dataset("values", ElementType::kF32, {full.numel()});
  for_each_slab(full, 0, full.numel(), [&](const float* values, int64_t at, int64_t count) {
    file.write("values", at, count, values);
  });
  file.set_attribute("name", name);
  file.set_attribute("xxh3_128", hash);
  file.commit();
}

void CheckpointWriter::check_space(const std::string& folder, const std::string& what,
                                   int64_t num_bytes) const {
  struct statvfs disk {};
  if (statvfs(folder.c_str(), &disk) != 0 || disk.f_blocks == 0) return;  // says nothing: just try
  const double available = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
  if (available >= static_cast<double>(num_bytes)) return;
  throw std::runtime_error(folder + ": " + what + " needs " + gib(static_cast<double>(num_bytes)) +
                           ", but the disk has " + gib(available) +
                           " left; free space or move run.folder, then run again");
}

void CheckpointWriter::finish() {
  guarded([&] {
    if (!file_) return;
    file_->commit();
    file_bytes_ = static_cast<int64_t>(std::filesystem::file_size(folder_ + "/" + file_name_));
  });
  if (!error_.empty()) {
    abandon();
    throw std::runtime_error(error_);
  }
}

nlohmann::json CheckpointWriter::report() const {
  nlohmann::json tensors = nlohmann::json::array();
  for (size_t i = 0; i < manifest_.tensors.size(); ++i) {
    const SavedTensor& tensor = manifest_.tensors[i];
    nlohmann::json shards = nlohmann::json::array();
    for (const Shard& shard : tensor.shards) shards.push_back(shard_to_json(shard));
    tensors.push_back({tensor.part, tensor.field, shards, fingerprints_[i]});
  }
  return {{"file", file_name_},
          {"file_bytes", file_bytes_},
          {"host", host_name()},
          {"tensors", tensors}};
}

Manifest CheckpointWriter::assemble(const std::vector<nlohmann::json>& reports) const {
  Manifest manifest = manifest_;
  manifest.world_size = size_;
  for (SavedTensor& tensor : manifest.tensors) tensor.shards.clear();
  for (size_t r = 0; r < reports.size(); ++r) {
    const nlohmann::json& tensors = reports[r].at("tensors");
    TORCH_CHECK(tensors.size() == manifest.tensors.size(), "rank 0 saved ", manifest.tensors.size(),
                " tensors, rank ", r, " ", tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      SavedTensor& tensor = manifest.tensors[i];
      TORCH_CHECK(tensors[i][0] == tensor.part && tensors[i][1] == tensor.field, "rank 0 saved ",
                  tensor.part, "/", tensor.field, " where rank ", r, " saved ",
                  tensors[i][0].dump(), "/", tensors[i][1].dump());
      const auto theirs = tensors[i][3].get<std::string>();
      if (theirs != fingerprints_[i]) {
        throw std::runtime_error(
            tensor.part + "/" + tensor.field + " is not the same on all ranks: fingerprint " +
            fingerprints_[i] + " on rank 0 (" + host_name() + "), " + theirs + " on rank " +
            std::to_string(r) + " (" + reports[r].at("host").get<std::string>() +
            "); nothing was saved: suspect the memory or processor of one of these hosts, and run "
            "again to continue from the last checkpoint");
      }
      for (const auto& shard : tensors[i][2]) tensor.shards.push_back(shard_from_json(shard));
    }
    if (reports[r].at("file_bytes") > 0) {
      manifest.file_bytes[reports[r].at("file")] = reports[r].at("file_bytes");
    }
  }
  return manifest;
}

}  // namespace sala
