// Checkpoints: RUN/checkpoints/<stage number>-<stage>-<step>/ with one HDF5 file per rank and
// manifest.json written last (fsync of file and folder, then rename). Until it is complete the
// folder has `.writing` at the end of its name. World-size free: every tensor is addressed as
// (part, field, element range), so any number of ranks loads what any number saved.
//
// State is of two kinds: small JSON under a name (the same on all ranks), and flat fp32 tensors
// ("fields": master, m, v …) of named parts with their layout. Each rank writes its own element
// range of each field. Frozen fields (`frozen`) are written once per run, by content hash, into
// RUN/checkpoints/frozen/. Every dataset has an XXH3-128 in the manifest, made in memory before the
// write and verified on load.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/layout.h"
#include "trainer/world.h"

namespace sala {

class StateWriter {
 public:
  virtual ~StateWriter() = default;
  // None of these throws: Checkpoints::save throws the first error of all ranks when all are
  // through.
  virtual void json(const std::string& name, const nlohmann::json& value) = 0;
  // `full` (num_elements) fp32, identical on all ranks: each writes an equal share of it.
  virtual void tensor(const std::string& part, const std::string& field, const Layout& layout,
                      const at::Tensor& full) = 0;
  // The same for values that never change again in this run (frozen weights).
  virtual void frozen(const std::string& part, const std::string& field, const Layout& layout,
                      const at::Tensor& full) = 0;
};

class StateReader {
 public:
  virtual ~StateReader() = default;
  virtual bool has(const std::string& name) const = 0;             // JSON
  virtual nlohmann::json json(const std::string& name) const = 0;  // throws when absent
  virtual bool has_tensor(const std::string& part, const std::string& field) const = 0;
  // Fills `full` (num_elements, any device and floating dtype) ; throws naming what differs when
  // the saved layout is another one, the file is torn, or a hash does not match.
  virtual void tensor(const std::string& part, const std::string& field, const Layout& layout,
                      at::Tensor& full) const = 0;
  virtual Layout layout(const std::string& part) const = 0;
  virtual std::vector<std::string> parts() const = 0;
};

struct CheckpointId {
  int64_t stage_index = 0;  // of the stage to continue
  std::string stage;        // its name
  int64_t step = 0;         // steps done in it; a stage boundary is step 0 of the next stage
  bool boundary = false;    // kept for ever
};

class Checkpoints {
 public:
  Checkpoints(std::string run_folder, World& world, int64_t keep);

  // Calls `fill` on every rank and writes. Blocks until the checkpoint is complete and durable. All
  // ranks throw the same error when one cannot write (full disk: named, nothing lost: the older
  // checkpoints stay). Old ones beyond `keep` are deleted, manifest first. Returns its folder.
  std::string save(const CheckpointId& id, const nlohmann::json& recipe,
                   const std::function<void(StateWriter&)>& fill);

  // The newest complete checkpoint whose files and hashes are all right (the ranks share the
  // reading); folders passed over are told in `skipped`, one line each with the reason, on every
  // rank. nullopt when none was ever completed; throws on all ranks when there are some and none is
  // right, or when one cannot be read, which says nothing about it. A checkpoint that was passed
  // over and then overtaken by a new one is set aside (its manifest renamed), so that a later start
  // cannot return to it.
  std::optional<std::string> newest_valid(std::vector<std::string>& skipped);

  // The newest boundary at or before the start of stage `stage_index`. On one rank.
  std::optional<std::string> last_boundary(int64_t stage_index) const;

  static CheckpointId id(const std::string& checkpoint_folder);
  static nlohmann::json recipe(const std::string& checkpoint_folder);
  // Opens for reading on this rank; verifies the manifest.
  static std::unique_ptr<StateReader> open(const std::string& checkpoint_folder);

 private:
  // Looks at this rank's share of the shards: empty when they are right, else what is wrong.
  std::string whole_or_why(const std::string& folder) const;

  std::string folder_;
  World& world_;
  int64_t keep_;
  std::set<std::string> sound_frozen_;  // frozen files that this process wrote or has checked
};

}  // namespace sala
