// From options to a table: the machine first, then op by op, size by size.
#include "trainer/bench/bench.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <stdexcept>

#include "data/files/output_file.h"
#include "trainer/bench/lists.h"
#include "trainer/bench/report.h"
#include "trainer/bench/serve.h"
#include "trainer/ranks/device_info.h"
#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error(what); }

at::Device chosen_device(const std::string& name) {
  const bool has_gpu = num_gpus() > 0;
  if (name == "cuda" && !has_gpu) {
    refuse(num_gpus() < 0 ? "--device cuda: this build has no CUDA; use --device cpu"
                          : "--device cuda: no GPU was found; use --device cpu");
  }
  if (!name.empty() && name != "cuda" && name != "cpu") {
    refuse("--device: expected cpu or cuda, got '" + name + "'");
  }
  const bool cuda = name.empty() ? has_gpu : name == "cuda";
  return cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

// Gaps filled with the defaults; whatever makes no sense is refused.
BenchOptions completed(BenchOptions o, bool cuda) {
  const BenchOptions d = bench_defaults(cuda);
  if (o.tokens.empty() && o.serve.on && cuda) {
    for (int64_t n = 8 << 10; n <= 1 << 20; n *= 2) o.tokens.push_back(n);
  }
  if (o.serve.layers == 0) o.serve.layers = d.serve.layers;
  if (o.serve.batches.empty()) o.serve.batches = d.serve.batches;
  if (o.dtype.empty()) o.dtype = d.dtype;
  if (o.tokens.empty()) o.tokens = d.tokens;
  if (o.heads.empty()) o.heads = d.heads;
  for (int64_t BenchOptions::*size :
       {&BenchOptions::head_size, &BenchOptions::width, &BenchOptions::ffn, &BenchOptions::vocab,
        &BenchOptions::repeats}) {
    if (o.*size == 0) o.*size = d.*size;
  }
  if (o.serve.on && o.kv_heads == 0) o.kv_heads = std::max<int64_t>(o.heads.front() / 16, 1);
  if (o.kv_heads > 0 && o.heads.front() % o.kv_heads != 0) {
    refuse(fmt::format("--kv-heads: expected a divisor of the {} query heads, got {}",
                       o.heads.front(), o.kv_heads));
  }
  if (o.dtype != "bf16" && o.dtype != "fp32") {
    refuse("--dtype: expected bf16 or fp32, got '" + o.dtype + "'");
  }
  if (o.head_size % 2 != 0) {
    refuse(fmt::format("--head-size: expected an even number (RoPE turns pairs), got {}",
                       o.head_size));
  }
  for (const int64_t tokens : o.tokens) {
    if (tokens % o.documents != 0) {
      refuse(fmt::format("--documents {0}: {1} tokens cannot be cut into {0} equal documents",
                         o.documents, format_count(tokens)));
    }
  }
  const std::vector<std::string> names = bench_op_names();
  for (const std::string& op : o.ops) {
    if (std::find(names.begin(), names.end(), op) == names.end()) {
      refuse(fmt::format("--op: no op is called '{}'{}", op, suggest(op, names)));
    }
  }
  return o;
}

BenchMachine measure_machine(const BenchShape& s, int64_t repeats) {
  const bool cuda = s.device.is_cuda();
  BenchMachine machine{device_name(s.device), s.dtype, cuda ? 8192 : 1024, 0, 0};
  const int64_t num_bytes = int64_t{1} << (cuda ? 30 : 27);
  const at::TensorOptions raw = at::TensorOptions(s.device).dtype(at::kByte);
  auto copy = [&]() -> BenchRun {
    at::Tensor from = at::zeros({num_bytes}, raw), to = at::empty_like(from);
    return [=]() -> BenchTensors { return {to.copy_(from)}; };
  };
  const double moved = 2.0 * double(num_bytes);
  machine.copy_bytes_per_s = moved / measure_bench(copy, moved, s.device, repeats).ms * 1e3;
  const int64_t n = machine.gemm_size;
  auto gemm = [&]() -> BenchRun {
    const at::Tensor a = s.normal({n, n}), b = s.normal({n, n});
    return [=]() -> BenchTensors { return {at::mm(a, b)}; };
  };
  const double flops = 2.0 * double(n) * double(n) * double(n);
  machine.gemm_flops_per_s = flops / measure_bench(gemm, moved, s.device, repeats).ms * 1e3;
  release_unused_memory(s.device);
  return machine;
}

void sweep(const BenchOp& op, BenchShape shape, const BenchOptions& o, BenchReport& report) {
  std::vector<int64_t> heads = o.heads, tokens, too_long;
  for (const int64_t n : o.tokens) (n <= op.max_tokens ? tokens : too_long).push_back(n);
  if (op.sweep != BenchSweep::kHeads) heads.resize(1);
  if (op.sweep == BenchSweep::kOnce) tokens.resize(1);
  for (const int64_t num_heads : heads) {
    for (const int64_t num_tokens : tokens) {
      shape.heads = num_heads;
      shape.tokens = num_tokens;
      if (op.one_token_documents) shape.documents = num_tokens;
      measure_op(op, shape, o.repeats, report);
    }
  }
  if (!too_long.empty()) report.left_out(op, too_long);
}

}  // namespace

BenchOptions bench_defaults(bool cuda) {
  BenchOptions d;
  d.dtype = cuda ? "bf16" : "fp32";
  d.tokens = {1 << 10};
  if (cuda) d.tokens = {4 << 10, 8 << 10, 32 << 10, 128 << 10, 1 << 20};
  d.heads = {cuda ? 32 : 4};
  d.head_size = cuda ? 128 : 64;
  d.width = cuda ? 4096 : 256;
  d.ffn = cuda ? 16384 : 1024;
  d.vocab = cuda ? 73448 : 4096;
  d.repeats = cuda ? 50 : 10;
  d.serve.layers = cuda ? 32 : 4;
  d.serve.batches = {1, 16};
  return d;
}

void measure_op(const BenchOp& op, const BenchShape& shape, int64_t repeats, BenchReport& report) {
  const double memory = device_memory_bytes(shape.device), bytes = op.bytes(shape);
  // Bytes that move are counted, not bytes that are held; what is updated in place is counted
  // twice. Beyond this nothing can fit; closer calls are left to the allocator.
  if (bytes > 2 * memory) {
    const double gib = 1 << 30;
    report.skipped(op, shape,
                   fmt::format("needs more than {:.0f} GiB, the device has {:.0f}", bytes / 2 / gib,
                               memory / gib));
    return;
  }
  try {
    const BenchTime time =
        measure_bench([&] { return op.prepare(shape); }, bytes, shape.device, repeats);
    report.row(op, shape, time);
  } catch (const c10::OutOfMemoryError&) {
    report.skipped(op, shape, "does not fit in the device's memory");
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    report.skipped(op, shape, what.substr(0, what.find('\n')));
  }
  release_unused_memory(shape.device);
}

std::vector<std::string> bench_op_names() {
  std::vector<std::string> names;
  for (const BenchOp& op : bench_ops()) {
    if (names.empty() || names.back() != op.name) names.push_back(op.name);
  }
  return names;
}

void run_bench(const BenchOptions& options) {
  const at::Device device = chosen_device(options.device);
  std::optional<BlockLists> lists;
  if (!options.lists_file.empty()) lists = read_block_lists(options.lists_file);
  if (!lists && !options.serve.on && options.kv_heads > 0) {
    refuse("--kv-heads needs --serve or --lists FILE.h5");
  }
  if (!options.json_file.empty()) {
    check_output_file(options.json_file, "measurements of sala-bench", [&] {
      return is_json_with(options.json_file, {"machine", "rows"});
    });
  }
  const BenchOptions o =
      completed(lists ? options_for_lists(options, *lists) : options, device.is_cuda());
  if (device.is_cuda()) at::globalContext().lazyInitDevice(device.type());
  if (o.serve.on) {
    run_serve(o, device);
    return;
  }
  const BenchShape shape{.documents = o.documents,
                         .head_size = o.head_size,
                         .width = o.width,
                         .ffn = o.ffn,
                         .vocab = o.vocab,
                         .dtype = o.dtype == "bf16" ? at::kBFloat16 : at::kFloat,
                         .device = device};
  const at::NoGradGuard no_grad;
  at::manual_seed(1);
  BenchReport report(measure_machine(shape, o.repeats), o.json_file);
  if (lists) {
    run_lists(o, *lists, shape, report);
    return;
  }
  const std::set<std::string> wanted(o.ops.begin(), o.ops.end());
  for (const BenchOp& op : bench_ops()) {
    if (wanted.empty() || wanted.count(op.name)) sweep(op, shape, o, report);
  }
}

}  // namespace sala
