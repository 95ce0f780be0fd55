// Reading a folder, running rows of ids through it, saying what it is.
#include "trainer/folder/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "data/files/hdf5_file.h"
#include "data/files/output_file.h"
#include "model/convert.h"
#include "model/families/families.h"
#include "model/forward.h"
#include "model/generate.h"
#include "model/model.h"
#include "model/weights/parts.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/folder/input_rows.h"
#include "trainer/folder/reader.h"
#include "trainer/folder/transformers_code.h"
#include "trainer/journal/folder_lock.h"
#include "trainer/journal/own_files.h"
#include "trainer/lists/collect.h"
#include "trainer/lists/unions.h"
#include "trainer/planning/flops.h"
#include "trainer/ranks/device_info.h"
#include "trainer/report/report.h"
#include "trainer/run.h"

namespace sala {

namespace {

namespace fs = std::filesystem;

void write_logits(const Model& model, HeldWeights& weights, const InputRows& rows,
                  const std::string& path, bool sparse) {
  const int64_t B = static_cast<int64_t>(rows.size());
  const int64_t T = static_cast<int64_t>(rows.front().size());
  for (const auto& row : rows) {
    if (static_cast<int64_t>(row.size()) != T) {
      throw std::runtime_error(fmt::format(
          "--logits needs rows of one length; the first has {} ids, another {}", T, row.size()));
    }
  }
  Hdf5File file = Hdf5File::create(path);
  file.create_dataset("logits", Hdf5Type::kF32, {B, T, model.config().vocab_size});
  const at::Device device = weights.parts().front().flat.device();
  for (int64_t b = 0; b < B; ++b) {
    const Batch batch = single_document(rows[b], 0, device);
    const at::Tensor x = hidden(model, weights, model.env(batch, sparse));
    const at::Tensor logits = sala::logits(model, weights, x).to(at::kFloat).cpu().contiguous();
    file.write("logits", b, 1, logits.const_data_ptr<float>());
  }
  file.commit();
}

// Writes the lists of the sparse layers, or of one, and prints what neighbours have in common. All
// tokens of the row count for that, whatever is written.
void write_lists(const Model& model, HeldWeights& weights, const std::vector<int64_t>& row,
                 const InspectOptions& o) {
  const at::Device device = weights.parts().front().flat.device();
  const BlockLists lists = collect_block_lists(model, weights, row, o.layer, device);
  fmt::print("{}\n", list_facts_head());
  for (const auto& [layer, blocks] : lists.layers) {
    const ListFacts facts = list_facts(blocks, lists.first_token, lists.config);
    fmt::print("{}\n", list_facts_line(fmt::format("layer {}", layer), facts));
  }
  write_block_lists(o.lists_file, o.last > 0 ? last_tokens(lists, o.last) : lists);
  fmt::print("{}: {} bytes\n", o.lists_file, fs::file_size(o.lists_file));
}

std::string mixer_line(const ModelConfig& c) {
  std::string text;
  for (Mixer mixer : c.mixers) {
    text += mixer == Mixer::kFull ? 'F' : mixer == Mixer::kSparse ? 'S' : 'L';
  }
  return text;
}

// Who loads the folder's hybrid, or the one that a conversion would make of it.
std::string export_lines(const std::string& folder, const ModelConfig& c) {
  const ModelConfig hybrid =
      c.is_hybrid() ? c : hybrid_config(c, {0, c.num_layers - 1}, SparseConfig{}, false);
  const ExportVerdict verdict = export_verdict(hybrid);
  std::string text =
      c.is_hybrid() ? "export\n" : "export of its hybrid (QK-norm dropped on kept layers)\n";
  if (!verdict.refusals.empty()) {
    text += fmt::format("  cannot be written: {}\n", fmt::join(verdict.refusals, "; "));
  }
  const bool with_code = !c.is_hybrid() || has_transformers_code(folder);
  for (const std::string& line : loader_lines(verdict, with_code)) {
    text += fmt::format("  {}\n", line);
  }
  return text;
}

// A checkpoint of a run, by what its manifest and its run's state say.
std::string describe_checkpoint(const std::string& folder) {
  const CheckpointId id = Checkpoints::id(folder);
  const auto recipe = Checkpoints::recipe(folder);
  const auto reader = Checkpoints::open(folder);
  const auto state = reader->json("run");
  const bool student = state.value("has_student", false);
  double num_elements = 0;
  for (const std::string& part : reader->parts()) {
    num_elements += static_cast<double>(reader->layout(part).num_elements);
  }
  std::string model = "not converted or trained yet";
  if (student) {
    model = "full attention, trained further";
    if (state.value("hybrid", false)) {
      const auto kept = state.at("kept").get<std::vector<int64_t>>();
      model = fmt::format("hybrid, kept layers {}", fmt::join(kept, ", "));
    }
  }
  return fmt::format(
      "checkpoint  {}, {} steps done in it\nsource      {}\nmodel       {}\n"
      "tensors     {} parts, {:.1f} M elements\ntokens      {} seen in training\n"
      "evaluations {}\n{}",
      id.stage == "done" ? "of the finished run" : "stage " + id.stage, id.step,
      recipe.value("source", "not stated"), model, reader->parts().size(), num_elements / 1e6,
      state.value("tokens_seen", int64_t{0}), state.value("evaluations", nlohmann::json()).size(),
      student
          ? fmt::format("as a model folder: sala-train RECIPE --from {} --export FOLDER\n", folder)
          : "");
}

// The newest checkpoint below a run folder, by name; empty when it has none.
std::string newest_checkpoint(const std::string& run_folder) {
  std::string newest;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run_folder + "/checkpoints", none)) {
    if (!fs::exists(entry.path() / "manifest.json", none)) continue;
    newest = std::max(newest, entry.path().string());
  }
  return newest;
}

// Writes the page of a run folder; returns its path.
std::string write_page_of(const std::string& run_folder) {
  if (!path_exists(run_folder + "/" + kMetricsFile)) {
    throw std::runtime_error(run_folder + ": --html wants a run folder, and this one has no " +
                             kMetricsFile);
  }
  const std::optional<bool> alive = holder_lives(run_folder);
  Report(run_folder).write(alive ? Maybe(*alive ? 1 : 0) : Maybe());
  return run_folder + "/" + kPageFile;
}

}  // namespace

std::string describe_folder(const std::string& folder) {
  std::error_code none;
  if (fs::exists(folder + "/manifest.json", none)) return describe_checkpoint(folder);
  if (const std::string newest = newest_checkpoint(folder); !newest.empty()) {
    return "run folder; its newest checkpoint is " + newest + "\n" + describe_checkpoint(newest);
  }
  const ModelConfig c = read_model_config(folder);
  int64_t counts[3] = {0, 0, 0};
  for (Mixer mixer : c.mixers) ++counts[static_cast<int>(mixer)];
  std::string text = fmt::format(
      "family      {}\nlayers      {} ({} full, {} sparse, {} lightning)  {}\n"
      "width       {}, feed-forward {}\n"
      "heads       {} query, {} key/value, size {}\nvocabulary  {}{}\nparameters  {:.1f} M\n"
      "context     {} tokens\n",
      c.family, c.num_layers, counts[0], counts[1], counts[2], mixer_line(c), c.width, c.ffn_width,
      c.num_heads, c.num_kv_heads, c.head_size, c.vocab_size, c.tied_head ? ", tied head" : "",
      static_cast<double>(num_parameters(c)) / 1e6, c.max_position);
  if (c.sliding_window > 0) {
    text += fmt::format("window      attends {} tokens back; treated as full attention\n",
                        c.sliding_window);
  }
  return text + export_lines(folder, c);
}

namespace {

// What cannot be done with these options, before any work is.
void check_options(const InspectOptions& o) {
  const bool has_rows = !o.ids_file.empty() || !o.store_file.empty();
  if (!has_rows && (!o.logits_file.empty() || o.generate > 0 || !o.lists_file.empty())) {
    throw std::runtime_error(
        "--logits, --generate and --lists need --ids FILE.json, or --store FILE.h5 and --tokens N");
  }
  if (!o.ids_file.empty() && !o.store_file.empty()) {
    throw std::runtime_error("--ids and --store: expected one of them");
  }
  if (o.store_file.empty() != (o.tokens == 0)) {
    throw std::runtime_error("--store and --tokens: expected both, or neither");
  }
  if (o.lists_file.empty() && (o.layer >= 0 || o.last > 0)) {
    throw std::runtime_error("--layer and --last need --lists FILE.h5");
  }
  if (!o.lists_file.empty() && o.dense) {
    throw std::runtime_error("--lists and --dense: dense layers have no lists");
  }
  if (!o.out_file.empty() && o.generate == 0) {
    throw std::runtime_error("--out needs --generate N");
  }
  const bool has_work = !o.logits_file.empty() || !o.lists_file.empty() || o.generate > 0;
  if (has_rows && !has_work) {
    throw std::runtime_error("--ids and --store need --logits, --generate or --lists");
  }
  if (o.html && (has_rows || has_work)) {
    throw std::runtime_error("--html takes a run folder and nothing else");
  }
}

void check_outputs(const InspectOptions& o) {
  if (!o.logits_file.empty()) {
    check_output_file(o.logits_file, "logits of sala-inspect", [&] {
      return Hdf5File::open(o.logits_file).list_datasets() == std::vector<std::string>{"logits"};
    });
  }
  if (!o.lists_file.empty()) {
    check_output_file(o.lists_file, "block lists of sala-inspect", [&] {
      static_cast<void>(read_block_lists(o.lists_file));
      return true;
    });
  }
  if (!o.out_file.empty()) {
    check_output_file(o.out_file, "continuations of sala-inspect",
                      [&] { return is_json_with(o.out_file, {"generated"}); });
  }
}

InputRows rows_of(const InspectOptions& o, const ModelConfig& config) {
  InputRows rows;
  if (o.ids_file.empty()) {
    rows = {read_document(o.store_file, tokenizer_of(o.folder, config), o.tokens)};
  } else {
    rows = read_ids(o.ids_file, config.vocab_size);
  }
  if (!o.lists_file.empty() && rows.size() != 1) {
    throw std::runtime_error(
        fmt::format("{}: --lists takes one row, found {}", o.ids_file, rows.size()));
  }
  return rows;
}

void generate_and_print(const Model& model, HeldWeights& weights, const InputRows& rows,
                        const InspectOptions& o) {
  GenerateOptions options;
  options.max_new_tokens = o.generate;
  options.sparse = !o.dense;
  options.device = weights.parts().front().flat.device();
  options.stop_ids = model.config().eos_ids;
  const nlohmann::json generated = generate_batch(model, weights, rows, options);
  const std::string text = nlohmann::json{{"generated", generated}}.dump();
  fmt::print("{}\n", text);
  if (!o.out_file.empty()) write_file_atomically(o.out_file, text + "\n");
}

}  // namespace

void inspect(const InspectOptions& o) {
  check_options(o);
  check_outputs(o);
  if (o.html) {
    fmt::print("{}\n", write_page_of(o.folder));
    return;
  }
  if (o.ids_file.empty() && o.store_file.empty()) {
    fmt::print("{}", describe_folder(o.folder));
    return;
  }
  const ModelConfig config = read_model_config(o.folder);
  check_weights(o.folder, model_layouts(config));  // before memory is taken for what it claims
  const InputRows rows = rows_of(o, config);
  const bool cuda = o.device == "cuda";
  if (cuda && num_gpus() < 1) {
    throw std::runtime_error("--device cuda: this machine has no GPU, or this build no CUDA");
  }
  const at::Device device = cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  const Model model(config);
  HeldWeights weights(model.layouts(), cuda ? at::kBFloat16 : at::kFloat, device);
  read_weights(o.folder, weights.parts());
  if (!o.logits_file.empty()) write_logits(model, weights, rows, o.logits_file, !o.dense);
  if (!o.lists_file.empty()) write_lists(model, weights, rows.front(), o);
  if (o.generate > 0) generate_and_print(model, weights, rows, o);
}

}  // namespace sala
