// manifest.json: what makes a folder a checkpoint. It names every tensor by (part, field) with its
// layout, and the element ranges ("shards") of it in HDF5 files, each with its XXH3-128. The
// manifest carries its own hash, so that a flipped bit in it is seen too.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoints.h"

namespace sala {

inline constexpr const char* kManifestName = "manifest.json";

// Elements [offset, offset + count) of one field, as the fp32 dataset `dataset` of `file`.
struct Shard {
  std::string file;  // relative to the checkpoint's folder
  std::string dataset;
  int64_t offset = 0, count = 0;
  std::string xxh3;  // 128 bits of the raw values
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
// Empty when names, shapes and offsets are equal, else what differs first ("expected …, saved …").
std::string layout_difference(const Layout& expected, const Layout& saved);

nlohmann::json shard_to_json(const Shard& shard);
Shard shard_from_json(const nlohmann::json& json);

std::string manifest_text(const Manifest& manifest);
// Throws std::runtime_error with one line that names the file: missing, not JSON, damaged, ranges
// that leave a gap.
Manifest read_manifest(const std::string& checkpoint_folder);

}  // namespace sala
