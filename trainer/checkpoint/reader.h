// Reading a checkpoint's state, checked against its manifest.
#pragma once

#include <memory>
#include <string>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/pieces.h"

namespace sala {

// What this rank has read of a checkpoint.
struct ReadCheckpoint {
  std::string folder;
  Manifest manifest;
  std::unique_ptr<PieceReader> pieces;
};

// Of the manifest alone; verifies it.
ReadCheckpoint read_checkpoint(const std::string& checkpoint_folder);

// The first thing wrong with what this rank reads of the checkpoint when `world_size` ranks share
// the reading; empty when all of it is right. Keeps up to `most_bytes` of it in its pieces. Throws
// FileError where the system refuses, which says nothing about what the checkpoint holds.
std::string share_problem(const ReadCheckpoint& checkpoint, int rank, int world_size,
                          int64_t most_bytes);

// `world`: of the ranks that fill whole tensors together; null: this one alone.
std::unique_ptr<OpenCheckpoint> make_checkpoint_reader(ReadCheckpoint checkpoint,
                                                       World* world = nullptr);

}  // namespace sala
