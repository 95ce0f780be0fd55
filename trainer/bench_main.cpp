// sala-bench: times of every op and of the lightning mixer.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <cstdio>

#include "trainer/bench/bench.h"
#include "trainer/recipe/field_values.h"
#include "trainer/version.h"

namespace {

int64_t size_of(const std::string& option, const std::string& text) {
  int64_t value = 0;
  std::string error;
  const sala::CountRange range{1, sala::kMostRowTokens};
  if (!sala::parse_count(text, range, value, error)) throw CLI::ValidationError(option, error);
  return value;
}

void add_size(CLI::App& app, const std::string& option, int64_t& value, const std::string& help) {
  app.add_option_function<std::string>(
         option, [&value, option](const std::string& text) { value = size_of(option, text); }, help)
      ->type_name("N");
}

void add_sizes(CLI::App& app, const std::string& option, std::vector<int64_t>& values,
               const std::string& help) {
  app.add_option_function<std::vector<std::string>>(
         option,
         [&values, option](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) values.push_back(size_of(option, text));
         },
         help)
      ->delimiter(',')
      ->type_name("N,N,...");
}

void add_options(CLI::App& app, sala::BenchOptions& o) {
  app.set_version_flag("--version", [] { return sala::version_text("sala-bench"); });
  std::string names;
  for (const std::string& name : sala::bench_op_names()) names += "\n" + name;
  app.add_option("--device", o.device, "cpu or cuda; default: cuda where there is a GPU");
  app.add_option("--op", o.ops, "Only this op; may be repeated. Default: all of them:" + names)
      ->allow_extra_args(false)
      ->type_name("NAME");
  add_sizes(app, "--tokens", o.tokens,
            "Default 4K,8K,32K,128K,1M (CPU: 1K); dense attention goes up to 32K, "
            "losses to 8K");
  add_sizes(app, "--heads", o.heads, "Default 32 (CPU: 4)");
  add_size(app, "--head-size", o.head_size, "Default 128 (CPU: 64)");
  add_size(app, "--width", o.width, "Of norms, gates and losses. Default 4096 (CPU: 256)");
  add_size(app, "--ffn", o.ffn, "Of SwiGLU and AdamW. Default 16K (CPU: 1K)");
  add_size(app, "--vocab", o.vocab, "Default 73448 (CPU: 4K)");
  add_size(app, "--documents", o.documents,
           "Documents of equal length that the tokens are. Default 1");
  add_size(app, "--repeats", o.repeats,
           "Calls per median, at most (a second in all). Default 50 (CPU: 10)");
  app.add_option("--dtype", o.dtype, "bf16 or fp32. Default bf16 (CPU: fp32)");
  app.add_flag("--serve", o.serve.on,
               "Instead of ops: time to first token and decode speed of a hybrid beside its "
               "full-attention source, both with random weights");
  add_sizes(app, "--batch", o.serve.batches, "With --serve: sequences side by side. Default 1,16");
  add_size(app, "--layers", o.serve.layers, "With --serve. Default 32 (CPU: 4)");
  add_size(app, "--chunk", o.serve.chunk, "With --serve: tokens of a pass of prefill. Default 16K");
  app.add_option("--most-gib", o.serve.most_gib,
                 "With --serve: memory that may be used, as if the GPU had no more. Default: all")
      ->check(CLI::NonNegativeNumber)
      ->type_name("GIB");
  add_size(app, "--steps", o.serve.steps, "With --serve: decode steps that are timed. Default 32");
  app.add_option("--most-seconds", o.serve.most_seconds,
                 "With --serve: leaves longer prefills out. Default 300")
      ->type_name("SECONDS");
  app.add_option("--lists", o.lists_file,
                 "Instead of ops: block-sparse attention on the lists of this file, which "
                 "sala-inspect --lists writes, beside made-up lists of its shape")
      ->type_name("FILE");
  add_size(app, "--kv-heads", o.kv_heads,
           "With --serve: of the source; default: one for 16 query heads, as MiniCPM4-8B. With "
           "--lists: of the file's KV heads, the first N; --heads share them");
  app.add_option("--json", o.json_file, "Also write everything to this file")->type_name("FILE");
}

}  // namespace

int main(int argc, char** argv) {
  at::globalContext().setFlushDenormal(true);
  CLI::App app{
      "Measures every op and the lightning mixer without its GEMMs: median time, the fewest bytes "
      "the op must move as GB/s and as a share of a measured copy, FLOP/s as a share of a measured "
      "GEMM, peak memory of one call. 'composition' is the same mixer from plain LibTorch calls; "
      "'decode' is one token of each of as many sequences as --tokens says; 'decode_...' one token "
      "of each of --documents sequences"};
  sala::BenchOptions options;
  add_options(app, options);
  try {
    app.parse(argc, argv);
    sala::run_bench(options);
    return 0;
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::Error& error) {
    std::fputs(fmt::format("sala-bench: {}\n", error.what()).c_str(), stderr);
    return 2;
  } catch (const c10::Error& error) {
    std::fputs(fmt::format("sala-bench: {}\n", error.what_without_backtrace()).c_str(), stderr);
  } catch (const std::exception& error) {
    std::fputs(fmt::format("sala-bench: {}\n", error.what()).c_str(), stderr);
  }
  return 1;
}
