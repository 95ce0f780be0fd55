// Ranges filled from the pieces that they touch; whole tensors by all ranks together.
#include "trainer/checkpoint/reader.h"

#include <fcntl.h>

#include <algorithm>
#include <set>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "trainer/checkpoint/layout_map.h"

namespace sala {
namespace {

class CheckpointReader final : public OpenCheckpoint {
 public:
  CheckpointReader(ReadCheckpoint checkpoint, World* world)
      : folder_(std::move(checkpoint.folder)),
        manifest_(std::move(checkpoint.manifest)),
        pieces_(std::move(checkpoint.pieces)),
        world_(world) {}

  const CheckpointId& id() const override { return manifest_.id; }
  const nlohmann::json& recipe() const override { return manifest_.recipe; }

  bool has(const std::string& name) const override { return manifest_.state.contains(name); }

  nlohmann::json json(const std::string& name) const override {
    if (!has(name)) throw std::runtime_error(folder_ + ": holds no state named " + name);
    return manifest_.state.at(name);
  }

  bool has_tensor(const std::string& part, const std::string& field) const override {
    return manifest_.find(part, field) != nullptr;
  }

  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              int64_t begin, at::Tensor& range) const override {
    const Filling filling = begin_filling(part, field, layout, begin, range);
    for (const ShardPiece& piece : pieces_of(manifest_, filling.tensor, 1)) {
      if (filling.needs(piece)) filling.take(piece, pieces_->read(*piece.shard, piece.index));
    }
  }

  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              at::Tensor& full) const override {
    TORCH_CHECK(full.defined() && full.numel() == layout.num_elements, part, "/", field,
                ": expected a tensor of ", layout.num_elements, " elements to fill, got ",
                full.defined() ? full.numel() : 0);
    if (world_ && world_->size() > 1) {
      fill_on_all(world_->comm(), part, field, layout, 0, full);
    } else {
      tensor(part, field, layout, 0, full);
    }
  }

  void tensor_of_copies(const std::string& part, const std::string& field, const Layout& layout,
                        int64_t begin, at::Tensor& range, Comm& copies) const override {
    if (!world_ || copies.size() == 1) return tensor(part, field, layout, begin, range);
    fill_on_all(copies, part, field, layout, begin, range);
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
  // A tensor that is being filled: what goes where.
  struct Filling {
    size_t tensor = 0;  // of the manifest
    at::Tensor flat;    // view of the caller's
    std::vector<Stretch> stretches;

    bool needs(const ShardPiece& piece) const {
      return std::any_of(stretches.begin(), stretches.end(), [&](const Stretch& s) {
        return s.saved < piece.end && piece.begin < s.saved + s.count;
      });
    }
    // `values`: the piece's, on any device.
    void take(const ShardPiece& piece, const at::Tensor& values) const {
      const at::NoGradGuard no_grad;
      for (const Stretch& s : stretches) {
        const int64_t first = std::max(s.saved, piece.begin);
        const int64_t count = std::min(s.saved + s.count, piece.end) - first;
        if (count <= 0) continue;
        flat.narrow(0, s.wanted + (first - s.saved), count)
            .copy_(values.narrow(0, first - piece.begin, count));
      }
    }
  };

  Filling begin_filling(const std::string& part, const std::string& field, const Layout& layout,
                        int64_t begin, const at::Tensor& range) const {
    const std::string name = part + "/" + field;
    const SavedTensor* saved = manifest_.find(part, field);
    if (!saved) throw std::runtime_error(folder_ + ": holds no tensor " + name);
    const Layout& have = manifest_.layouts.at(part);
    const std::string difference = layout_difference(layout, have);
    if (!difference.empty()) {
      throw std::runtime_error(folder_ + ": " + name + ": " + difference +
                               "; was the model or the recipe's source changed?");
    }
    TORCH_CHECK(range.defined() && range.is_contiguous() && 0 <= begin &&
                    begin + range.numel() <= layout.num_elements &&
                    at::isFloatingType(range.scalar_type()),
                name, ": expected contiguous floating elements of [0, ", layout.num_elements,
                ") to fill, got ", range.defined() ? range.numel() : 0, " from ", begin, " of ",
                range.toString());
    Filling filling{static_cast<size_t>(saved - manifest_.tensors.data()), range.view({-1}),
                    stretches(have, layout, begin, begin + range.numel())};
    const at::NoGradGuard no_grad;
    if (!same_places(have, layout)) filling.flat.zero_();  // what lies between tensors
    return filling;
  }

  // The ranks of `comm` fill the same range: each reads the pieces that it owns and sends them to
  // the others. For all ranks together; an error of one is everybody's before anything is sent.
  void fill_on_all(Comm& comm, const std::string& part, const std::string& field,
                   const Layout& layout, int64_t begin, at::Tensor& range) const {
    Filling filling;
    std::vector<ShardPiece> pieces;
    std::vector<at::Tensor> values;
    world_->together("reading " + part + "/" + field, [&] {
      filling = begin_filling(part, field, layout, begin, range);
      pieces = pieces_to_fill(filling, comm.size());
      for (const ShardPiece& piece : pieces) {
        const bool mine = piece.owner == comm.rank();
        values.push_back(mine ? pieces_->read(*piece.shard, piece.index) : at::Tensor());
      }
    });
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto options = at::TensorOptions(at::kFloat).device(world_->device());
      at::Tensor sent = values[i].defined() ? values[i].to(options)
                                            : at::empty({pieces[i].end - pieces[i].begin}, options);
      comm.broadcast(sent, pieces[i].owner);
      filling.take(pieces[i], sent);
      values[i] = at::Tensor();
    }
  }

  // Those that the range touches, dealt out. What all ranks of the run fill is read by those that
  // looked at it before (share_problem), and may have kept it.
  std::vector<ShardPiece> pieces_to_fill(const Filling& filling, int num_ranks) const {
    std::vector<ShardPiece> pieces = pieces_of(manifest_, filling.tensor, num_ranks);
    if (num_ranks == world_->size()) return pieces;
    std::erase_if(pieces, [&](const ShardPiece& piece) { return !filling.needs(piece); });
    for (size_t i = 0; i < pieces.size(); ++i) {
      pieces[i].owner = static_cast<int>((filling.tensor + i) % static_cast<size_t>(num_ranks));
    }
    return pieces;
  }

  std::string folder_;
  Manifest manifest_;
  std::unique_ptr<PieceReader> pieces_;
  World* world_;
};

// Reads the file once more, whole: throws FileError when the system refuses.
void check_readable(const std::string& path) {
  constexpr int64_t kBlockBytes = 4 << 20;
  const Descriptor file(path, O_RDONLY);
  for (int64_t at = 0, size = file.size(); at < size; at += kBlockBytes) {
    file.read(at, kBlockBytes);
  }
}

// What is wrong with the piece, empty when nothing is. A disk that refuses (FileError) says nothing
// about what it holds, and a refusal may be gone at the second try.
std::string settled_problem(const std::string& folder, const ShardPiece& piece, PieceReader& pieces,
                            int64_t most_bytes) {
  if (pieces.problem(*piece.shard, piece.index, most_bytes).empty()) return "";
  const std::string path = folder + "/" + piece.shard->file;
  if (path_exists(path)) check_readable(path);
  return pieces.problem(*piece.shard, piece.index, most_bytes);
}

// Those whose size this rank looks at: what it reads, and of all files its turn, so that hundreds
// of ranks do not open every one of hundreds.
std::set<std::string> files_to_look_at(const Manifest& manifest, int rank, int world_size) {
  std::set<std::string> files;
  int64_t turn = 0;
  for (const auto& [file, num_bytes] : manifest.file_bytes) {
    if (turn++ % world_size == rank) files.insert(file);
  }
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    for (const ShardPiece& piece : pieces_of(manifest, t, world_size)) {
      if (piece.owner == rank) files.insert(piece.shard->file);
    }
  }
  return files;
}

}  // namespace

std::string share_problem(const ReadCheckpoint& checkpoint, int rank, int world_size,
                          int64_t most_bytes) {
  const auto& [folder, manifest, pieces] = checkpoint;
  const std::set<std::string> files = files_to_look_at(manifest, rank, world_size);
  for (const auto& [file, num_bytes] : manifest.file_bytes) {
    if (!files.count(file)) continue;
    const std::string path = folder + "/" + file;
    if (!path_exists(path)) return path + ": No such file";
    const int64_t found = Descriptor(path, O_RDONLY).size();
    if (found != num_bytes) {
      return path + ": has " + std::to_string(found) + " bytes, the manifest says " +
             std::to_string(num_bytes) + ": truncated or replaced";
    }
  }
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    for (const ShardPiece& piece : pieces_of(manifest, t, world_size)) {
      if (piece.owner != rank) continue;
      const std::string problem = settled_problem(folder, piece, *pieces, most_bytes);
      if (!problem.empty()) return problem;
    }
  }
  return "";
}

ReadCheckpoint read_checkpoint(const std::string& checkpoint_folder) {
  Manifest manifest = read_manifest(checkpoint_folder);
  std::set<std::string> frozen;
  for (const SavedTensor& tensor : manifest.tensors) {
    for (const Shard& shard : tensor.shards) {
      if (shard.file.starts_with("../")) frozen.insert(shard.file);
    }
  }
  // One is enough to see that the folder was left behind; its other files are missed when read.
  if (!frozen.empty() && !path_exists(checkpoint_folder + "/" + *frozen.begin())) {
    throw std::runtime_error(
        checkpoint_folder + "/" + *frozen.begin() +
        ": No such file; what does not train lies once for all checkpoints, in "
        "checkpoints/frozen: copy that folder along with this one");
  }
  return {checkpoint_folder, std::move(manifest), std::make_unique<PieceReader>(checkpoint_folder)};
}

std::unique_ptr<OpenCheckpoint> make_checkpoint_reader(ReadCheckpoint checkpoint, World* world) {
  return std::make_unique<CheckpointReader>(std::move(checkpoint), world);
}

}  // namespace sala
