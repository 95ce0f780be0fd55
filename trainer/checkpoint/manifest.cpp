// JSON text of manifests and its checks.
#include "trainer/checkpoint/manifest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hash.h"

namespace sala {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "sala-checkpoint";
constexpr const char* kHashKey = "manifest_xxh3";
constexpr const char* kNonFinite = "non-finite number";
constexpr int kMaxDepth = 100;  // of nested lists: what reads JSON calls itself once for each
// JSON is UTF-8; a recipe may hold other bytes (paths), which must not end a save.
constexpr auto kReplace = Json::error_handler_t::replace;

// The parser's own message would quote the damaged bytes.
Json parse_json(const std::string& text) {
  const auto shallow = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) throw std::runtime_error("lists nested too deep");
    return true;
  };
  try {
    return Json::parse(text, shallow);
  } catch (const Json::parse_error& error) {
    throw std::runtime_error("not JSON at byte " + std::to_string(error.byte));
  }
}

// JSON has no NaN and no infinity, and would store null: they travel as {kNonFinite: "nan"}.
Json encode_numbers(const Json& value) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    const double x = value.get<double>();
    return {{kNonFinite, std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf"}};
  }
  if (!value.is_structured()) return value;
  Json result = value;
  for (auto& item : result) item = encode_numbers(item);
  return result;
}

Json decode_numbers(const Json& value) {
  if (!value.is_structured()) return value;
  if (value.is_object() && value.size() == 1 && value.contains(kNonFinite)) {
    const std::string text = value.at(kNonFinite);
    if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
    return text == "inf" ? std::numeric_limits<double>::infinity()
                         : -std::numeric_limits<double>::infinity();
  }
  Json result = value;
  for (auto& item : result) item = decode_numbers(item);
  return result;
}

Json body_of(const Manifest& manifest) {
  Json json{{"format", kFormat},
            {"id",
             {{"stage_index", manifest.id.stage_index},
              {"stage", manifest.id.stage},
              {"step", manifest.id.step},
              {"boundary", manifest.id.boundary}}},
            {"world_size", manifest.world_size},
            {"recipe", encode_numbers(manifest.recipe)},
            {"state", encode_numbers(manifest.state)},
            {"layouts", Json::object()},
            {"tensors", Json::array()},
            {"file_bytes", manifest.file_bytes}};
  for (const auto& [part, layout] : manifest.layouts)
    json["layouts"][part] = layout_to_json(layout);
  for (const SavedTensor& tensor : manifest.tensors) {
    Json shards = Json::array();
    for (const Shard& shard : tensor.shards) shards.push_back(shard_to_json(shard));
    json["tensors"].push_back({{"part", tensor.part}, {"field", tensor.field}, {"shards", shards}});
  }
  return json;
}

Manifest from_body(const Json& json) {
  Manifest manifest;
  const Json& id = json.at("id");
  manifest.id = {id.at("stage_index"), id.at("stage"), id.at("step"), id.at("boundary")};
  manifest.world_size = json.at("world_size");
  manifest.recipe = decode_numbers(json.at("recipe"));
  manifest.state = decode_numbers(json.at("state"));
  manifest.file_bytes = json.at("file_bytes").get<std::map<std::string, int64_t>>();
  for (const auto& [part, layout] : json.at("layouts").items()) {
    manifest.layouts[part] = layout_from_json(layout);
  }
  for (const Json& tensor : json.at("tensors")) {
    SavedTensor saved{tensor.at("part"), tensor.at("field"), {}};
    for (const Json& shard : tensor.at("shards")) saved.shards.push_back(shard_from_json(shard));
    manifest.tensors.push_back(std::move(saved));
  }
  return manifest;
}

}  // namespace

const SavedTensor* Manifest::find(const std::string& part, const std::string& field) const {
  for (const SavedTensor& tensor : tensors) {
    if (tensor.part == part && tensor.field == field) return &tensor;
  }
  return nullptr;
}

Json layout_to_json(const Layout& layout) {
  Json entries = Json::array();
  for (const Entry& entry : layout.entries) {
    entries.push_back({{"name", entry.name},
                       {"shape", entry.shape},
                       {"offset", entry.offset},
                       {"decay", entry.decay},
                       {"init", static_cast<int>(entry.init)}});
  }
  return {{"name", layout.name}, {"num_elements", layout.num_elements}, {"entries", entries}};
}

Layout layout_from_json(const Json& json) {
  Layout layout;
  layout.name = json.at("name");
  layout.num_elements = json.at("num_elements");
  for (const Json& entry : json.at("entries")) {
    layout.entries.push_back({entry.at("name"), entry.at("shape").get<std::vector<int64_t>>(),
                              entry.at("offset"), entry.at("decay"),
                              static_cast<Init>(entry.at("init").get<int>())});
  }
  return layout;
}

Json shard_to_json(const Shard& shard) {
  return {{"file", shard.file},
          {"dataset", shard.dataset},
          {"offset", shard.offset},
          {"count", shard.count},
          {"piece_elements", shard.piece_elements},
          {"xxh3_128", shard.xxh3}};
}

Shard shard_from_json(const Json& json) {
  Shard shard{json.at("file"), json.at("dataset"), json.at("offset"), json.at("count"), 0, {}};
  const Json& hashes = json.at("xxh3_128");
  if (hashes.is_string()) {  // of a shard that was saved before there were pieces
    shard.piece_elements = shard.count;
    shard.xxh3 = {hashes.get<std::string>()};
  } else {
    shard.piece_elements = json.at("piece_elements");
    shard.xxh3 = hashes.get<std::vector<std::string>>();
  }
  return shard;
}

void check_ranges(const Manifest& manifest) {
  for (const SavedTensor& tensor : manifest.tensors) {
    int64_t next = 0;
    for (const Shard& shard : tensor.shards) {
      const bool hashed =
          shard.piece_elements > 0 &&
          (shard.count - 1) / shard.piece_elements + 1 == static_cast<int64_t>(shard.xxh3.size());
      if (shard.offset != next || shard.count <= 0 || !hashed) next = -1;
      if (next < 0) break;
      next += shard.count;
    }
    if (next != manifest.layouts.at(tensor.part).num_elements) {
      throw std::runtime_error("the shards of " + tensor.part + "/" + tensor.field +
                               " do not cover it once");
    }
  }
}

std::string manifest_text(const Manifest& manifest) {
  Json json = body_of(manifest);
  const std::string body = json.dump(-1, ' ', false, kReplace);
  json[kHashKey] = xxh3_128_hex(body.data(), body.size());
  return json.dump(1, ' ', false, kReplace) + "\n";
}

Manifest read_manifest(const std::string& checkpoint_folder) {
  const std::string path = checkpoint_folder + "/" + kManifestName;
  if (!path_exists(path)) {
    throw std::runtime_error(checkpoint_folder + ": no " + kManifestName +
                             ": not a checkpoint, or its save was interrupted");
  }
  const std::string text = read_text_file(path);
  try {
    Json json = parse_json(text);
    if (json.value("format", "") != kFormat)
      throw std::runtime_error("not a checkpoint's manifest");
    const std::string hash = json.at(kHashKey);
    json.erase(kHashKey);
    const std::string body = json.dump();
    if (xxh3_128_hex(body.data(), body.size()) != hash) throw std::runtime_error("hash differs");
    Manifest manifest = from_body(json);
    check_ranges(manifest);
    return manifest;
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": damaged or foreign manifest (" + error.what() +
                             "); use another checkpoint");
  }
}

}  // namespace sala
