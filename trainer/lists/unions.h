// How much the block lists of neighbouring tokens have in common. A kernel that takes n tokens at a
// time reads the union of their blocks, u(n) times what one of them lists.
#pragma once

#include <array>
#include <string>

#include "trainer/lists/file.h"

namespace sala {

inline constexpr std::array<int64_t, 3> kUnionTokens = {4, 8, 16};

// Of the tokens that have a choice: those that see more blocks than they list. NaN: there is none.
struct ListFacts {
  // u(n) for each of kUnionTokens: blocks that any of n neighbouring tokens of a KV head lists over
  // what one of them does, a mean over the tiles of n tokens whose first has a choice.
  std::array<double, kUnionTokens.size()> unions;
  double forced;  // share of the blocks that no score decided: the first ones and the window
};

// First token of a document that sees more blocks than it lists.
int64_t first_choice(const SparseConfig& config);

// u(n) of blocks (NKV, T, K) int32 on the host: the lists of tokens from first_token of a document
// on.
double union_factor(const at::Tensor& blocks, int64_t first_token, int64_t n,
                    const SparseConfig& config);
ListFacts list_facts(const at::Tensor& blocks, int64_t first_token, const SparseConfig& config);

// Lines of a table: "lists  u(4)  u(8)  u(16)  forced".
std::string list_facts_head();
std::string list_facts_line(const std::string& name, const ListFacts& facts);

}  // namespace sala
