// What a model's parameters take on a rank under each sharding, in elements: what is allocated
// (parameters.cpp) and what memory plans count (Parameters::planned_bytes) alike.
#pragma once

#include <vector>

#include "trainer/parameters.h"
#include "trainer/sharding/cut.h"

namespace sala {

// fp32, or fp64 where that is what is computed in.
at::ScalarType master_dtype(at::ScalarType compute);
// In a world of one rank every sharding is none.
Parameters::Options effective_options(Parameters::Options options, int num_ranks);
Cut cut_of(const Layout& layout, Sharding sharding, int num_ranks);

// By part, of those that are `needed`; 0 of the others.
std::vector<int64_t> padded_sizes(const std::vector<Cut>& cuts, const std::vector<bool>& needed);
int64_t largest_share(const std::vector<Cut>& cuts, const std::vector<bool>& needed);

}  // namespace sala
