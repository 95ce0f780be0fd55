// Hashing and writing in slabs, so that whoever reads data through HDF5 gets its turn in between.
#include "trainer/checkpoint/writer.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "data/files/hash.h"
#include "data/files/hdf5_file.h"
#include "trainer/checkpoint/pieces.h"
#include "trainer/ranks/environment.h"

namespace sala {
namespace {

constexpr int64_t kSlabElements = kSlabBytes / 4;

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

// `what` takes `num_bytes`.
void check_space(const std::string& folder, const std::string& what, int64_t num_bytes) {
  struct statvfs disk {};
  if (statvfs(folder.c_str(), &disk) != 0 || disk.f_blocks == 0) return;  // says nothing: just try
  const double available = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
  if (available >= static_cast<double>(num_bytes)) return;
  throw std::runtime_error(folder + ": " + what + " needs " + gib(static_cast<double>(num_bytes)) +
                           ", but the disk has " + gib(available) +
                           " left; free space or move run.folder, then run again");
}

class SnapshotWriter {
 public:
  SnapshotWriter(const Snapshot& snapshot, const WriterPlace& place,
                 std::set<std::string>& sound_frozen, const std::atomic<bool>& given_up)
      : snapshot_(snapshot), place_(place), sound_frozen_(sound_frozen), given_up_(given_up) {
    char name[32];
    std::snprintf(name, sizeof name, "rank-%05d.h5", place.rank);
    file_name_ = name;
  }

  nlohmann::json operator()() {
    std::map<std::string, std::vector<OwnRange*>> frozen;  // by group
    for (const SnapshotTensor& tensor : snapshot_.tensors()) {
      const std::string dataset = tensor.part + "/" + tensor.field;
      ranges_.push_back(
          {tensor, {"", dataset, tensor.begin, tensor.values.count, kPieceElements, {}}});
    }
    for (OwnRange& range : ranges_) {
      if (range.shard.count == 0) continue;
      if (range.tensor.group.empty()) {
        write(range);
      } else {
        frozen[range.tensor.group].push_back(&range);
      }
    }
    for (const auto& [group, members] : frozen) write_frozen(group, members);
    nlohmann::json tensors = nlohmann::json::array();
    for (const auto& [tensor, shard] : ranges_) {
      nlohmann::json shards = nlohmann::json::array();
      if (shard.count > 0) shards.push_back(shard_to_json(shard));
      tensors.push_back({tensor.part, tensor.field, shards, tensor.fingerprint});
    }
    int64_t file_bytes = 0;
    if (file_) {
      file_->commit();
      file_bytes =
          static_cast<int64_t>(std::filesystem::file_size(place_.folder + "/" + file_name_));
    }
    return {{"file", file_name_},
            {"file_bytes", file_bytes},
            {"host", host_name()},
            {"tensors", tensors}};
  }

 private:
  // What this rank keeps of a tensor, and where it goes.
  struct OwnRange {
    const SnapshotTensor& tensor;
    Shard shard;
  };

  // Calls use(values, number of values, first element) for slabs of the tensor's elements that this
  // rank keeps, and returns the hashes of their pieces.
  template <class Use>
  std::vector<std::string> for_each_slab(const SnapshotTensor& tensor, const Use& use) const {
    std::vector<std::string> hashes;
    for (int64_t begin = 0; begin < tensor.values.count; begin += kPieceElements) {
      const int64_t end = std::min(begin + kPieceElements, tensor.values.count);
      Xxh3Stream hash(Xxh3Width::k128);
      for (int64_t at = begin; at < end;) {
        if (given_up_) throw std::runtime_error("the checkpoint was given up");
        const auto slab =
            snapshot_.staging().view(tensor.values, at, std::min(kSlabElements, end - at));
        hash.update(slab.data(), slab.size_bytes());
        use(slab, at);
        at += static_cast<int64_t>(slab.size());
      }
      hashes.push_back(hash.hex());
    }
    return hashes;
  }

  // Its hashes.
  std::vector<std::string> write_range(Hdf5File& file, const OwnRange& range) const {
    file.create_dataset(range.shard.dataset, Hdf5Type::kF32, {range.shard.count});
    return for_each_slab(range.tensor, [&](std::span<const float> values, int64_t at) {
      file.write(range.shard.dataset, at, static_cast<int64_t>(values.size()), values.data());
    });
  }

  void write(OwnRange& range) {
    check_space(place_.folder, range.shard.dataset, range.tensor.num_elements * 4);
    if (!file_) file_ = Hdf5File::create(place_.folder + "/" + file_name_);
    range.shard.file = file_name_;
    range.shard.xxh3 = write_range(*file_, range);
  }

  // Named by content; what is there already is looked at once, and written again when damaged.
  void write_frozen(const std::string& group, const std::vector<OwnRange*>& members) {
    std::string content;
    for (OwnRange* member : members) {
      member->shard.xxh3 = for_each_slab(member->tensor, [](std::span<const float>, int64_t) {});
      content += shard_to_json(member->shard).dump();
    }
    const std::string name =
        file_safe(group) + "-" + xxh3_128_hex(content.data(), content.size()) + ".h5";
    const std::string path = place_.frozen_folder + "/" + name;
    for (OwnRange* member : members) member->shard.file = name;
    if (!sound_frozen_.contains(name) || !path_exists(path)) {
      const bool sound = std::all_of(members.begin(), members.end(), [&](const OwnRange* member) {
        return shard_problem(place_.frozen_folder, member->shard).empty();
      });
      if (!sound) write_frozen_file(path, group, members);
      sound_frozen_.insert(name);
    }
    for (OwnRange* member : members) member->shard.file = place_.frozen_prefix + "/" + name;
  }

  void write_frozen_file(const std::string& path, const std::string& group,
                         const std::vector<OwnRange*>& members) const {
    int64_t num_bytes = 0;
    for (const OwnRange* member : members) num_bytes += member->shard.count * 4;
    check_space(place_.frozen_folder, group, num_bytes);
    Hdf5File file = Hdf5File::create(path);
    for (const OwnRange* member : members) write_range(file, *member);
    file.commit();
  }

  const Snapshot& snapshot_;
  const WriterPlace& place_;
  std::set<std::string>& sound_frozen_;
  const std::atomic<bool>& given_up_;
  std::string file_name_;
  std::optional<Hdf5File> file_;
  std::vector<OwnRange> ranges_;  // by tensor
};

void check_same_values(const SnapshotTensor& tensor, const std::string& theirs, size_t rank,
                       const nlohmann::json& report) {
  if (theirs == tensor.fingerprint) return;
  throw std::runtime_error(
      tensor.part + "/" + tensor.field + " is not the same on all ranks: fingerprint " +
      tensor.fingerprint + " on rank 0 (" + host_name() + "), " + theirs + " on rank " +
      std::to_string(rank) + " (" + report.at("host").get<std::string>() +
      "); nothing was saved: suspect the memory or processor of one of these hosts, and run "
      "again to continue from the last checkpoint");
}

}  // namespace

nlohmann::json write_snapshot(const Snapshot& snapshot, const WriterPlace& place,
                              std::set<std::string>& sound_frozen,
                              const std::atomic<bool>& given_up) {
  return SnapshotWriter(snapshot, place, sound_frozen, given_up)();
}

Manifest assemble(const Snapshot& snapshot, const std::vector<nlohmann::json>& reports) {
  Manifest manifest;
  manifest.world_size = static_cast<int64_t>(reports.size());
  manifest.state = snapshot.state();
  manifest.layouts = snapshot.layouts();
  const std::vector<SnapshotTensor>& mine = snapshot.tensors();
  for (const SnapshotTensor& tensor : mine) {
    manifest.tensors.push_back({tensor.part, tensor.field, {}});
  }
  for (size_t r = 0; r < reports.size(); ++r) {
    const nlohmann::json& tensors = reports[r].at("tensors");
    TORCH_CHECK(tensors.size() == mine.size(), "rank 0 saved ", mine.size(), " tensors, rank ", r,
                " ", tensors.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      TORCH_CHECK(tensors[i][0] == mine[i].part && tensors[i][1] == mine[i].field, "rank 0 saved ",
                  mine[i].part, "/", mine[i].field, " where rank ", r, " saved ",
                  tensors[i][0].dump(), "/", tensors[i][1].dump());
      check_same_values(mine[i], tensors[i][3].get<std::string>(), r, reports[r]);
      for (const auto& shard : tensors[i][2]) {
        manifest.tensors[i].shards.push_back(shard_from_json(shard));
      }
    }
    if (reports[r].at("file_bytes") > 0) {
      manifest.file_bytes[reports[r].at("file")] = reports[r].at("file_bytes");
    }
  }
  for (SavedTensor& tensor : manifest.tensors) {
    std::sort(tensor.shards.begin(), tensor.shards.end(),
              [](const Shard& a, const Shard& b) { return a.offset < b.offset; });
  }
  check_ranges(manifest);
  return manifest;
}

}  // namespace sala
