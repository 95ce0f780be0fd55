// Reading pieces in slabs, hashed on the way.
#include "trainer/checkpoint/pieces.h"

#include <algorithm>
#include <stdexcept>

#include "data/file_limit.h"
#include "data/files/hash.h"

namespace sala {
namespace {

constexpr int64_t kSlabElements = kSlabBytes / 4;
constexpr int64_t kMostOpenFiles = 64;

}  // namespace

std::vector<ShardPiece> pieces_of(const Manifest& manifest, size_t tensor, int num_ranks) {
  const SavedTensor& saved = manifest.tensors.at(tensor);
  std::vector<ShardPiece> pieces;
  for (const Shard& shard : saved.shards) {
    for (size_t i = 0; i < shard.xxh3.size(); ++i) {
      pieces.push_back(
          {&shard, i, shard.offset + shard.piece_begin(i), shard.offset + shard.piece_end(i), 0});
    }
  }
  const auto ranks = static_cast<size_t>(num_ranks);
  const int64_t all = manifest.layouts.at(saved.part).num_elements;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const int64_t middle = (pieces[i].begin + pieces[i].end) / 2;
    // Tensors of fewer pieces than ranks: one after the other, so that no rank reads them all.
    pieces[i].owner =
        static_cast<int>(pieces.size() < ranks ? (tensor + i) % ranks : middle * num_ranks / all);
  }
  return pieces;
}

PieceReader::PieceReader(std::string checkpoint_folder)
    : folder_(std::move(checkpoint_folder)),
      open_(static_cast<size_t>(share_of_open_files(kMostOpenFiles))) {}

at::Tensor PieceReader::read_file(const Shard& shard, size_t index) {
  const std::string path = folder_ + "/" + shard.file;
  const Hdf5File& file = open_.open(path);
  const int64_t count = file.num_elements(shard.dataset);
  if (count != shard.count) {
    throw std::runtime_error(path + ": dataset `" + shard.dataset + "` has " +
                             std::to_string(count) + " elements, the manifest says " +
                             std::to_string(shard.count));
  }
  const int64_t begin = shard.piece_begin(index), end = shard.piece_end(index);
  at::Tensor values = at::empty({end - begin}, at::kFloat);
  Xxh3Stream hash(Xxh3Width::k128);
  for (int64_t at = begin; at < end; at += kSlabElements) {
    const int64_t size = std::min(kSlabElements, end - at);
    float* const slab = values.data_ptr<float>() + (at - begin);
    file.read(shard.dataset, at, size, slab);
    hash.update(slab, static_cast<size_t>(size) * sizeof(float));
  }
  if (hash.hex() != shard.xxh3.at(index)) {
    throw std::runtime_error(path + ": dataset `" + shard.dataset + "` is damaged: the hash of " +
                             "its elements [" + std::to_string(begin) + ", " + std::to_string(end) +
                             ") is not the manifest's; use another checkpoint");
  }
  return values;
}

at::Tensor PieceReader::read(const Shard& shard, size_t index) {
  const auto kept = kept_.extract(Key(shard.file, shard.dataset, index));
  if (kept.empty()) return read_file(shard, index);
  kept_bytes_ -= static_cast<int64_t>(kept.mapped().nbytes());
  return kept.mapped();
}

std::string PieceReader::problem(const Shard& shard, size_t index, int64_t most_bytes) {
  try {
    at::Tensor values = read_file(shard, index);
    const auto num_bytes = static_cast<int64_t>(values.nbytes());
    if (kept_bytes_ + num_bytes <= most_bytes) {
      kept_bytes_ += num_bytes;
      kept_[Key(shard.file, shard.dataset, index)] = std::move(values);
    }
    return "";
  } catch (const c10::Error& error) {
    open_.close(folder_ + "/" + shard.file);
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    open_.close(folder_ + "/" + shard.file);
    return error.what();
  }
}

std::string shard_problem(const std::string& folder, const Shard& shard) {
  PieceReader reader(folder);
  for (size_t i = 0; i < shard.xxh3.size(); ++i) {
    const std::string problem = reader.problem(shard, i);
    if (!problem.empty()) return problem;
  }
  return "";
}

}  // namespace sala
