// Checkpoints: RUN/checkpoints/<stage number>-<stage>-<step>/ with one HDF5 file per rank and
// manifest.json written last (fsync of file and folder, then rename). Until it is complete the
// folder has `.writing` at the end of its name. World-size free: every tensor is addressed as
// (part, field, element range), so any number of ranks loads what any number saved.
//
// State is of two kinds: small JSON under a name (the same on all ranks), and flat fp32 tensors
// ("fields": master, m, v …) of named parts with their layout. Each rank writes its own element
// range of each field. Frozen fields (`frozen`) are written once per run, by content hash, into
// RUN/checkpoints/frozen/. Datasets are hashed in pieces of about 64 MB (XXH3-128 in the manifest),
// made in memory before the write; a rank reads and verifies the pieces it needs.
//
// Saving does not stop the run: start() queues the copies of this rank's ranges to host memory,
// beside the next step, whose update alone waits for them; one thread per process hashes and writes
// them while the run steps on, and poll() or finish(), called by all ranks at a later step
// boundary, commit the manifest when every rank's files are durable. A crash before that leaves the
// checkpoint before it.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/weights/layout.h"
#include "trainer/sharding/side_stream.h"
#include "trainer/world.h"

namespace sala {

// Takes state over. Tensors are held until they are copied; whoever changes their values before the
// next boundary of stages waits for copied() first.
class StateWriter {
 public:
  virtual ~StateWriter() = default;
  // None of these throws: Checkpoints throws the first error of all ranks when all are through.
  // Ranks call them for the same names in the same order.
  virtual void json(const std::string& name, const nlohmann::json& value) = 0;

  // This rank's elements [begin, begin + range.numel()) of the part's flat fp32 tensor
  // (layout.num_elements); `range` contiguous, fp32 or narrower, any device, may be empty. The
  // ranges of all ranks cover the tensor once; an error at the commit when they do not.
  virtual void tensor(const std::string& part, const std::string& field, const Layout& layout,
                      int64_t begin, const at::Tensor& range) = 0;
  // `full` (num_elements), identical on all ranks: each keeps an equal share of it. An error at the
  // commit when its bits differ between ranks.
  virtual void tensor(const std::string& part, const std::string& field, const Layout& layout,
                      const at::Tensor& full) = 0;
  // The same for values that never change again in this run (frozen weights). A whole tensor goes
  // into one file, whatever the number of ranks; the ranges of a rank that are of one `group`, a
  // name for what is the same as a whole from one checkpoint to the next, into another.
  virtual void frozen(const std::string& part, const std::string& field, const Layout& layout,
                      const at::Tensor& full) = 0;
  virtual void frozen(const std::string& group, const std::string& part, const std::string& field,
                      const Layout& layout, int64_t begin, const at::Tensor& range) = 0;
  // This rank's work for what later runs read beside the checkpoint: it is not complete before that
  // is done, and fails with it. An invalid future is none.
  virtual void complete_after(std::shared_future<void> /*work*/) {}
  // Behind the copies of all tensors that are handed over, these and later ones. Null: nothing to
  // wait for.
  virtual std::shared_ptr<const Mark> copied() const { return nullptr; }
};

// The saved tensors of a part are found by their names: a layout that has them at other offsets or
// in another order loads them too (what lies between tensors is then zero). Missing ones, others
// and other shapes are an error that names the first.
class StateReader {
 public:
  virtual ~StateReader() = default;
  virtual bool has(const std::string& name) const = 0;             // JSON
  virtual nlohmann::json json(const std::string& name) const = 0;  // throws when absent
  virtual bool has_tensor(const std::string& part, const std::string& field) const = 0;
  // Fills `range` (contiguous, any device and floating dtype) with elements [begin, begin +
  // range.numel()) of the part's flat tensor; reads and verifies only the pieces that these touch.
  // On this rank alone. Throws naming what differs when the saved layout is another one, the file
  // is torn, or a hash does not match.
  virtual void tensor(const std::string& part, const std::string& field, const Layout& layout,
                      int64_t begin, at::Tensor& range) const = 0;
  // The same where the ranks of `copies` fill the same range. Of a reader of
  // Checkpoints::open_on_all this is for all ranks together: each reads a part of the range, and
  // hands it to the others of `copies`.
  virtual void tensor_of_copies(const std::string& part, const std::string& field,
                                const Layout& layout, int64_t begin, at::Tensor& range,
                                Comm& /*copies*/) const {
    tensor(part, field, layout, begin, range);
  }
  // Fills `full` (num_elements). Of a reader of Checkpoints::open_on_all this is for all ranks
  // together: each reads a share, and hands it to the others.
  virtual void tensor(const std::string& part, const std::string& field, const Layout& layout,
                      at::Tensor& full) const = 0;
  virtual Layout layout(const std::string& part) const = 0;  // as saved
  virtual std::vector<std::string> parts() const = 0;
};

struct CheckpointId {
  int64_t stage_index = 0;  // of the stage to continue
  std::string stage;        // its name
  int64_t step = 0;         // steps done in it; a stage boundary is step 0 of the next stage
  bool boundary = false;    // kept for ever
};

// A checkpoint that is read: its state, and what it is of, by one reading of its manifest.
class OpenCheckpoint : public StateReader {
 public:
  virtual const CheckpointId& id() const = 0;
  virtual const nlohmann::json& recipe() const = 0;
};

// A checkpoint that has just become complete.
struct SavedCheckpoint {
  CheckpointId id;
  std::string folder;
  double stall_seconds = 0;  // the run stood still: the snapshot, waiting in finish(), the commit
  double write_seconds = 0;  // hashing, writing and fsync of the slowest rank, and complete_after
};

// A checkpoint whose files could not be written. Nothing of it is left; the state is as good as it
// was, and so may be the next save. Any other error of a save says that something is wrong with the
// state, or with what later runs read beside it.
class WriteFailed : public SharedError {
 public:
  using SharedError::SharedError;
};

class Checkpoints {
 public:
  Checkpoints(std::string run_folder, World& world, int64_t keep);
  // What is still being written is given up, as by a crash.
  ~Checkpoints();

  // All of these are for all ranks together. All ranks throw the same WriteFailed when one cannot
  // write (full disk: named, nothing lost: the older checkpoints stay).
  //
  // Calls `fill` on every rank, and returns when this rank's copies to host memory are queued, at a
  // boundary of stages when they are made; the rest happens in a thread of its own. One checkpoint
  // is written at a time: finish() comes first. `persists`: what cannot be written is tried twice
  // more after a pause, from the same snapshot, before it is an error.
  void start(const CheckpointId& id, const nlohmann::json& recipe,
             const std::function<void(StateWriter&)>& fill, bool persists = false);
  // Makes the host memory for such a snapshot ready, in a thread of its own: page-locking takes far
  // longer than the copy. `fill` is called to count, on this rank; start() waits.
  void prepare(const std::function<void(StateWriter&)>& fill);
  bool is_writing() const;  // started and not committed; the same on all ranks
  // Commits if every rank has written; nullopt when there is nothing to commit yet. Old
  // checkpoints beyond `keep` are deleted then, manifest first.
  std::optional<SavedCheckpoint> poll();
  // Waits for the writers and commits; nullopt when nothing was being written.
  std::optional<SavedCheckpoint> finish();
  // start and finish. Returns the folder.
  std::string save(const CheckpointId& id, const nlohmann::json& recipe,
                   const std::function<void(StateWriter&)>& fill);

  // The newest complete checkpoint whose files and hashes are all right (the ranks share the
  // reading, and keep in memory what they read until open_on_all takes it over); folders passed
  // over are told in `skipped`, one line each with the reason, on every rank. nullopt when none was
  // ever completed; throws on all ranks when there are some and none is right, or when one cannot
  // be read, which says nothing about it. A checkpoint that was passed over and then overtaken by a
  // new one is set aside (its manifest renamed), so that a later start cannot return to it.
  std::optional<std::string> newest_valid(std::vector<std::string>& skipped);

  // The newest boundary at or before the start of stage `stage_index`. On one rank.
  std::optional<std::string> last_boundary(int64_t stage_index) const;

  static CheckpointId id(const std::string& checkpoint_folder);
  static nlohmann::json recipe(const std::string& checkpoint_folder);
  // Opens for reading on this rank alone; verifies the manifest.
  static std::unique_ptr<OpenCheckpoint> open(const std::string& checkpoint_folder);
  // The same for all ranks together, which read the checkpoint about once in all: what newest_valid
  // has read is not read again.
  std::unique_ptr<OpenCheckpoint> open_on_all(const std::string& checkpoint_folder);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sala
