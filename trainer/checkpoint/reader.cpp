// Every shard is read whole and hashed on the way, so that damage is an error, never a value.
#include "trainer/checkpoint/reader.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <stdexcept>

#include "data/files/hash.h"
#include "data/files/hdf5_file.h"

namespace sala {
namespace {

constexpr int64_t kSlabElements = kSlabBytes / 4;

class CheckpointReader final : public StateReader {
 public:
  explicit CheckpointReader(const std::string& folder)
      : folder_(folder), manifest_(read_manifest(folder)) {}

  bool has(const std::string& name) const override { return manifest_.state.contains(name); }

  nlohmann::json json(const std::string& name) const override {
    if (!has(name)) throw std::runtime_error(folder_ + ": holds no state named " + name);
    return manifest_.state.at(name);
  }

  bool has_tensor(const std::string& part, const std::string& field) const override {
    return manifest_.find(part, field) != nullptr;
  }

  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              at::Tensor& full) const override {
    const std::string name = part + "/" + field;
    const SavedTensor* saved = manifest_.find(part, field);
    if (!saved) throw std::runtime_error(folder_ + ": holds no tensor " + name);
    const std::string difference = layout_difference(layout, manifest_.layouts.at(part));
    if (!difference.empty()) {
      throw std::runtime_error(folder_ + ": " + name + ": " + difference +
                               "; was the model or the recipe's source changed?");
    }
    TORCH_CHECK(full.defined() && full.is_contiguous() && full.numel() == layout.num_elements &&
                    at::isFloatingType(full.scalar_type()),
                name, ": expected a contiguous floating tensor of ", layout.num_elements,
                " elements to fill, got ", full.defined() ? full.numel() : 0, " of ",
                full.toString());
    for (const Shard& shard : saved->shards) {
      const std::string problem = shard_problem(folder_, shard, &full);
      if (!problem.empty()) throw std::runtime_error(problem);
    }
  }

  Layout layout(const std::string& part) const override {
    const auto found = manifest_.layouts.find(part);
    if (found == manifest_.layouts.end()) {
      throw std::runtime_error(folder_ + ": holds no part " + part);
    }
    return found->second;
  }

  std::vector<std::string> parts() const override {
    std::vector<std::string> names;
    for (const auto& [part, layout] : manifest_.layouts) names.push_back(part);
    return names;
  }

 private:
  std::string folder_;
  Manifest manifest_;
};

}  // namespace

std::string shard_problem(const std::string& folder, const Shard& shard, at::Tensor* fill) {
  const std::string path = folder + "/" + shard.file;
  const c10::NoGradGuard no_grad;
  try {
    const Hdf5File file = Hdf5File::open(path);
    const int64_t count = file.num_elements(shard.dataset);
    if (count != shard.count) {
      return path + ": dataset `" + shard.dataset + "` has " + std::to_string(count) +
             " elements, the manifest says " + std::to_string(shard.count);
    }
    Xxh3Stream hash(Xxh3Width::k128);
    at::Tensor slab = at::empty({std::min(kSlabElements, count)}, at::kFloat);
    for (int64_t at = 0; at < count; at += kSlabElements) {
      const int64_t size = std::min(kSlabElements, count - at);
      file.read(shard.dataset, at, size, slab.data_ptr<float>());
      hash.update(slab.const_data_ptr<float>(), static_cast<size_t>(size) * sizeof(float));
      if (fill) fill->view({-1}).narrow(0, shard.offset + at, size).copy_(slab.narrow(0, 0, size));
    }
    if (hash.hex() != shard.xxh3) {
      return path + ": dataset `" + shard.dataset +
             "` is damaged: its hash is not the manifest's; use another checkpoint";
    }
    return "";
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::unique_ptr<StateReader> make_checkpoint_reader(const std::string& checkpoint_folder) {
  return std::make_unique<CheckpointReader>(checkpoint_folder);
}

}  // namespace sala
