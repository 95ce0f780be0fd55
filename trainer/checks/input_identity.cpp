// Hashing behind trainer/checks/input_identity.h.
#include "trainer/checks/input_identity.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include "data/files/atomic_file.h"
#include "data/files/hash.h"
#include "data/questions/choice_set.h"
#include "data/source.h"

namespace sala {
namespace {

using Json = nlohmann::json;

constexpr int64_t kBlockBytes = 4 << 20;

std::string hash_if_there(const std::string& path) {
  return path_exists(path) ? hash_of_file(path) : "";
}

// Changes whenever a file is written, replaced or moved.
std::string stamp_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw FileError(path, "look at it", errno);
  const auto nanoseconds = [](const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; };
  return fmt::format("{} {} {} {}", status.st_size, nanoseconds(status.st_mtim),
                     nanoseconds(status.st_ctim), status.st_ino);
}

// The one file, or all the shards.
std::vector<std::string> weight_files(const std::string& folder) {
  if (path_exists(folder + "/model.safetensors")) return {"model.safetensors"};
  std::vector<std::string> files;
  for (const std::string& name : names_in_folder(folder)) {
    if (name.ends_with(".safetensors")) files.push_back(name);
  }
  return files;
}

// {file: {hash, stamp}} of the files that fall to this rank.
Json my_weights(const std::string& folder, const World& world, const Json& known) {
  Json weights = Json::object();
  int64_t index = 0;
  for (const std::string& name : weight_files(folder)) {
    if (index++ % world.size() != world.rank()) continue;
    const std::string path = folder + "/" + name, stamp = stamp_of(path);
    const Json before = known.value(name, Json::object());
    weights[name] = {
        {"hash", before.value("stamp", "") == stamp ? before.at("hash").get<std::string>()
                                                    : hash_of_file(path)},
        {"stamp", stamp}};
  }
  return weights;
}

// By the checksums that were verified at the start.
std::string hash_of_stores(const std::vector<std::string>& patterns, const StoreCatalog& stores) {
  Xxh3Stream hash(Xxh3Width::k128);
  for (const std::string& path : expand_globs(patterns)) {
    const StoreFacts* facts = stores.find(path);
    if (!facts) throw std::runtime_error(path + ": changed while the run starts");
    const std::string& checksum = facts->checksum;
    hash.update(checksum.data(), checksum.size());
  }
  return hash.hex();
}

}  // namespace

std::string hash_of_file(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  Xxh3Stream hash(Xxh3Width::k128);
  for (int64_t at = 0, size = file.size(); at < size; at += kBlockBytes) {
    const std::string block = file.read(at, kBlockBytes);
    hash.update(block.data(), block.size());
  }
  return hash.hex();
}

Json input_identity(const Recipe& recipe, World& world, const StoreCatalog& stores,
                    const Json& known) {
  Json mine;
  world.together("source model " + recipe.source, [&] {
    mine = my_weights(recipe.source, world, known.value("weights", Json::object()));
  });
  Json identity = {{"weights", Json::object()}, {"stores", Json::object()}};
  for (const std::string& part : world.gather_first(mine.dump())) {
    identity["weights"].update(Json::parse(part));
  }
  world.together("input files", [&] {
    if (world.rank() != 0) return;
    identity["config"] = hash_of_file(recipe.source + "/config.json");
    identity["tokenizer"] = hash_if_there(recipe.source + "/tokenizer.json");
    identity["needles"] = recipe.data.needles.empty() ? "" : hash_of_file(recipe.data.needles);
    identity["tasks"] = recipe.data.tasks.empty() ? "" : hash_of_file(recipe.data.tasks);
    identity["choices"] = Json::object();
    for (const std::string& path : recipe.data.choices) {
      identity["choices"][choice_set_name(path)] = hash_of_file(path);
    }
    for (const auto& [name, source] : recipe.data.sources) {
      identity["stores"][name] = hash_of_stores(source.files, stores);
    }
  });
  return Json::parse(world.broadcast(identity.dump()));
}

std::vector<std::string> input_differences(const Json& saved, const Json& now) {
  std::vector<std::string> differences;
  const auto compare = [&](const Json& a, const Json& b, const std::string& what) {
    if (a != b) differences.push_back(what);
  };
  // What the recipe did not name then was no input of the stages that are done.
  const auto compare_named = [&](const std::string& a, const Json& b, const std::string& what) {
    if (!a.empty()) compare(a, b, what);
  };
  compare(saved.at("config"), now.at("config"), "config.json of the source");
  compare(saved.at("tokenizer"), now.at("tokenizer"), "tokenizer.json of the source");
  compare_named(saved.at("needles"), now.at("needles"), "the needles");
  compare_named(saved.value("tasks", ""), now.at("tasks"), "the tasks");
  const Json choices = saved.value("choices", Json::object());
  for (const auto& [name, hash] : choices.items()) {
    compare(hash, now.at("choices").value(name, Json()), "the multiple-choice set " + name);
  }
  const auto hashes = [](const Json& weights) {
    Json result = Json::object();
    for (const auto& [file, one] : weights.items()) result[file] = one.at("hash");
    return result;
  };
  compare(hashes(saved.at("weights")), hashes(now.at("weights")), "the weights of the source");
  for (const auto& [name, hash] : now.at("stores").items()) {
    compare_named(saved.at("stores").value(name, ""), hash, "the stores of data source " + name);
  }
  return differences;
}

}  // namespace sala
