// sala-bench --lists: block-sparse attention on the lists of a trained hybrid, beside made-up lists
// of the same shape.
#pragma once

#include "trainer/bench/bench.h"
#include "trainer/bench/op.h"
#include "trainer/lists/file.h"

namespace sala {

class BenchReport;

// Heads and head size that are not given are the file's. Options that do not go with its lists:
// std::runtime_error.
BenchOptions options_for_lists(BenchOptions options, const BlockLists& lists);

// A line per layer of the file, kind of made-up lists and pass; then what neighbouring tokens of
// each have in common. `options` as completed by run_bench, of one number of heads.
void run_lists(const BenchOptions& options, const BlockLists& lists, BenchShape shape,
               BenchReport& report);

}  // namespace sala
