// sala-inspect FOLDER: what a model folder or a checkpoint is; its logits and greedy continuations
// for given token ids.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <cstdio>

#include "trainer/folder/inspect.h"
#include "trainer/version.h"

int main(int argc, char** argv) {
  at::globalContext().setFlushDenormal(true);
  CLI::App app{
      "Describes a Hugging Face model folder, source or hybrid, and runs token ids through it"};
  sala::InspectOptions options;
  app.add_option("folder", options.folder,
                 "Folder with config.json and safetensors, a run folder or a checkpoint")
      ->required();
  app.add_option("--ids", options.ids_file, "JSON rows of token ids: [[1, 2], [3, 4]]");
  app.add_option("--logits", options.logits_file, "Write logits (B, T, V) fp32 to this HDF5 file");
  app.add_option("--generate", options.generate, "Continue every row by N tokens, greedily");
  app.add_option("--out", options.out_file, "Also write the continuations to this JSON file");
  app.add_option("--device", options.device, "cpu (fp32) or cuda (bf16)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_flag("--html", options.html,
               "Write the report.html of a run folder again, from its metrics.jsonl");
  app.add_flag("--dense", options.dense, "Sparse layers attend densely whatever dense_len says");
  app.set_version_flag("--version", [] { return sala::version_text("sala-inspect"); });
  CLI11_PARSE(app, argc, argv);
  try {
    sala::inspect(options);
    return 0;
  } catch (const c10::Error& error) {
    std::fputs(fmt::format("sala-inspect: {}\n", error.what_without_backtrace()).c_str(), stderr);
  } catch (const std::exception& error) {
    std::fputs(fmt::format("sala-inspect: {}\n", error.what()).c_str(), stderr);
  }
  return 1;
}
