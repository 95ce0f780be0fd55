// Block-sparse attention as sala-bench measures it, on lists of blocks from anywhere.
#pragma once

#include <functional>
#include <string>

#include "trainer/bench/op.h"

namespace sala {

// (NKV, T, K) int32 on the shape's device.
using MakeLists = std::function<at::Tensor(const BenchShape&)>;

inline constexpr const char* kCorrelatedName = "sparse_attention";
inline constexpr const char* kRandomName = "sparse_random_lists";

// Lists that neighbouring tokens share for the most part, and lists that they do not share.
at::Tensor correlated_lists(const BenchShape& shape);
at::Tensor random_lists(const BenchShape& shape);

BenchOp sparse_bench_op(const std::string& name, bool backward, const MakeLists& lists);

}  // namespace sala
