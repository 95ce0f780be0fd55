// sala-inspect FOLDER: what a model folder or a checkpoint is; its logits, greedy continuations and
// block lists for given token ids.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <cstdio>

#include "trainer/folder/inspect.h"
#include "trainer/recipe/field_values.h"
#include "trainer/version.h"

namespace {

// A number of tokens, as in recipes: 8192 or 8K.
void add_count(CLI::App& app, const std::string& option, int64_t& value, const std::string& help) {
  app.add_option_function<std::string>(
         option,
         [&value, option](const std::string& text) {
           std::string error;
           const sala::CountRange range{1, sala::kMostRowTokens};
           if (!sala::parse_count(text, range, value, error)) {
             throw CLI::ValidationError(option, error);
           }
         },
         help)
      ->type_name("N");
}

}  // namespace

int main(int argc, char** argv) {
  at::globalContext().setFlushDenormal(true);
  CLI::App app{
      "Describes a Hugging Face model folder, source or hybrid, and runs token ids through it"};
  sala::InspectOptions options;
  app.add_option("folder", options.folder,
                 "Folder with config.json and safetensors, a run folder or a checkpoint")
      ->required();
  app.add_option("--ids", options.ids_file, "JSON rows of token ids: [[1, 2], [3, 4]]");
  app.add_option("--store", options.store_file,
                 "Instead of --ids: the first document of this token store with --tokens tokens");
  add_count(app, "--tokens", options.tokens, "With --store: its first N tokens are the row");
  app.add_option("--logits", options.logits_file, "Write logits (B, T, V) fp32 to this HDF5 file");
  app.add_option("--lists", options.lists_file,
                 "Write the block lists that the sparse layers choose for the row to this HDF5 "
                 "file, and print what neighbouring tokens' lists have in common");
  app.add_option("--layer", options.layer, "With --lists: of this layer alone")
      ->check(CLI::NonNegativeNumber);
  add_count(app, "--last", options.last, "With --lists: write the lists of the last N tokens only");
  add_count(app, "--generate", options.generate, "Continue every row by N tokens, greedily");
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
