// sala-bench --serve: time to first token and decode speed of a hybrid beside its full-attention
// source, at many lengths. Weights are random, of the shape of MiniCPM4-8B on CUDA.
#pragma once

#include "trainer/bench/bench.h"

namespace sala {

// Prints the table while it measures: a row per model, batch and length, then what the hybrid
// gains. What does not fit, or would take longer than options.serve.most_seconds to prefill, is a
// row that says so. `options` as completed by run_bench.
void run_serve(const BenchOptions& options, at::Device device);

}  // namespace sala
