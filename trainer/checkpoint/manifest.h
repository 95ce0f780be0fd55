// manifest.json: what makes a folder a checkpoint. It names every tensor by (part, field) with its
// layout, and the element ranges ("shards") of it in HDF5 files, with the XXH3-128 of their
// pieces. The manifest carries its own hash, so that a flipped bit in it is seen too.
#pragma once

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoints.h"

namespace sala {

inline constexpr const char* kManifestName = "manifest.json";

inline constexpr int64_t kPieceElements = int64_t{16} << 20;  // 64 MiB: hashed, read at once

// Elements [offset, offset + count) of one field, as the fp32 dataset `dataset` of `file`. Hashed
// in pieces of `piece_elements`, the last one shorter.
struct Shard {
  std::string file;  // relative to the checkpoint's folder
  std::string dataset;
  int64_t offset = 0, count = 0;
  int64_t piece_elements = kPieceElements;
  std::vector<std::string> xxh3;  // 128 bits of the raw values, by piece

  int64_t piece_begin(size_t piece) const { return static_cast<int64_t>(piece) * piece_elements; }
  int64_t piece_end(size_t piece) const {  // both in elements of the dataset
    return std::min(count, piece_begin(piece + 1));
  }
};

struct SavedTensor {
  std::string part, field;
  std::vector<Shard> shards;  // cover [0, num_elements of the part) once, in order
};

struct Manifest {
  CheckpointId id;
  int64_t world_size = 1;  // that saved it; loading does not care
  nlohmann::json recipe;
  nlohmann::json state = nlohmann::json::object();  // JSON state by name
  std::map<std::string, Layout> layouts;            // by part
  std::vector<SavedTensor> tensors;
  std::map<std::string, int64_t> file_bytes;  // of the rank files

  const SavedTensor* find(const std::string& part, const std::string& field) const;
};

nlohmann::json layout_to_json(const Layout& layout);
Layout layout_from_json(const nlohmann::json& json);
nlohmann::json shard_to_json(const Shard& shard);
Shard shard_from_json(const nlohmann::json& json);

// Throws when a tensor's shards leave a gap or overlap.
void check_ranges(const Manifest& manifest);

std::string manifest_text(const Manifest& manifest);
// Throws std::runtime_error with one line that names the file: missing, not JSON, damaged, ranges
// that leave a gap.
Manifest read_manifest(const std::string& checkpoint_folder);

}  // namespace sala
