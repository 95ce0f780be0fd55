// Reading a checkpoint's state, checked against its manifest.
#pragma once

#include <memory>
#include <string>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/pieces.h"

namespace sala {

// The first thing wrong with what this rank reads of the checkpoint when `world_size` ranks share
// the reading; empty when all of it is right. Keeps up to `most_bytes` of it in `pieces`. Throws
// FileError where the system refuses, which says nothing about what the checkpoint holds.
std::string share_problem(const std::string& folder, const Manifest& manifest, int rank,
                          int world_size, PieceReader& pieces, int64_t most_bytes);

// `pieces`: what was read before, null for nothing. `world`: of the ranks that fill whole tensors
// together; null: this one alone.
std::unique_ptr<StateReader> make_checkpoint_reader(const std::string& checkpoint_folder,
                                                    std::unique_ptr<PieceReader> pieces = nullptr,
                                                    World* world = nullptr);

}  // namespace sala
