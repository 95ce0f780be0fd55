// The pieces of a checkpoint's tensors, as they lie in its files: each is read whole and compared
// with its hash, so that damage is an error, never a value.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "data/open_files.h"
#include "trainer/checkpoint/manifest.h"

namespace sala {

struct ShardPiece {
  const Shard* shard = nullptr;
  size_t index = 0;            // in it
  int64_t begin = 0, end = 0;  // elements of the part's flat tensor
  int owner = 0;               // the rank that reads it when ranks share the reading
};

// All pieces of manifest.tensors[tensor], in order. A rank owns those about where an equal share of
// the tensor would lie: where as many ranks load as saved, its own file.
std::vector<ShardPiece> pieces_of(const Manifest& manifest, size_t tensor, int num_ranks);

class PieceReader {
 public:
  explicit PieceReader(std::string checkpoint_folder);

  // Its elements (fp32, host). Throws one line that names the file and what is wrong. What is kept
  // from before is given away, and not read again.
  at::Tensor read(const Shard& shard, size_t index);
  // Empty when the piece is right, else what is wrong with it. Keeps its elements in memory as
  // long as fewer than `most_bytes` are kept.
  std::string problem(const Shard& shard, size_t index, int64_t most_bytes = 0);

 private:
  using Key = std::tuple<std::string, std::string, size_t>;
  at::Tensor read_file(const Shard& shard, size_t index);

  std::string folder_;
  OpenFiles<Hdf5File> open_;  // each share of a tensor lies in a file of its own
  std::map<Key, at::Tensor> kept_;
  int64_t kept_bytes_ = 0;
};

// Whether the shard's file under `folder` holds it: empty, or what is wrong.
std::string shard_problem(const std::string& folder, const Shard& shard);

}  // namespace sala
