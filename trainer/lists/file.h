// Block lists of a trained hybrid, kept as a file: what sala-inspect --lists writes and sala-bench
// --lists times block-sparse attention on. data/FORMAT.md has the bytes.
//
// Errors: std::runtime_error with one line that names the file and what is wrong with it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace sala {

// As block_select returns them, of one sparse layer.
struct LayerLists {
  int64_t layer = 0;
  at::Tensor blocks;  // (NKV, T, K) int32 on the host
};

// Of one document, whose tokens before first_token have none here.
struct BlockLists {
  SparseConfig config;
  int64_t num_heads = 0, head_size = 0;
  int64_t first_token = 0;
  std::vector<LayerLists> layers;  // ascending, of equal sizes

  int64_t num_kv_heads() const { return layers.front().blocks.size(0); }
  int64_t num_tokens() const { return layers.front().blocks.size(1); }
};

// Lists of the last `count` tokens, or of all where there are no more.
BlockLists last_tokens(const BlockLists& lists, int64_t count);

void write_block_lists(const std::string& path, const BlockLists& lists);
// Every list is checked to be one that block_select can return, so that kernels may trust it.
BlockLists read_block_lists(const std::string& path);

}  // namespace sala
