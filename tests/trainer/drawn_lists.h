// Block lists for tests: such as block_select could return, drawn at random.
#pragma once

#include <algorithm>

#include "trainer/lists/file.h"

namespace sala::test {

inline at::Tensor drawn_lists(const SparseConfig& c, int64_t heads, int64_t first, int64_t tokens) {
  const int64_t K = c.blocks_per_token();
  at::Tensor blocks = at::full({heads, tokens, K}, -1, at::kInt);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t seen = (first + t) / c.block_size + 1, count = std::min(K, seen);
      const at::Tensor chosen = at::randperm(seen, at::kInt).narrow(0, 0, count);
      blocks[h][t].narrow(0, 0, count).copy_(std::get<0>(at::sort(chosen)));
    }
  }
  return blocks;
}

// Four of up to nine blocks, for tokens 35 to 135 of a document; 6 heads share 2 KV heads.
inline BlockLists drawn() {
  at::manual_seed(5);
  BlockLists lists;
  lists.config.block_size = lists.config.window_size = 16;
  lists.config.topk = 3;
  lists.config.dense_len = 0;
  lists.num_heads = 6;
  lists.head_size = 32;
  lists.first_token = 35;
  for (const int64_t layer : {2, 10}) {
    lists.layers.push_back({layer, drawn_lists(lists.config, 2, lists.first_token, 101)});
  }
  return lists;
}

}  // namespace sala::test
