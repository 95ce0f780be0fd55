// The parts of a model card.
#include "trainer/folder/model_card.h"

#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <sstream>
#include <system_error>

#include "data/files/atomic_file.h"
#include "trainer/folder/reader.h"
#include "trainer/journal/report.h"

namespace sala {
namespace {

namespace fs = std::filesystem;

// Of a header's line only what needs no quotes is taken over.
bool is_plain(const std::string& value) {
  return !value.empty() && value.find_first_not_of(
                               "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRST"
                               "UVWXYZ0123456789._/:+-") == value.npos;
}

// "org/name" as the hub names the model: the folder of its cache is models--org--name, and older
// configs say where they came from. Else the folder's name.
std::string base_model(const std::string& source) {
  std::error_code error;
  const fs::path folder = fs::weakly_canonical(fs::path(source) / ".", error);
  for (const fs::path& part : folder) {
    const std::string name = part.string();
    const size_t cut = name.find("--", 8);
    if (name.starts_with("models--") && cut != name.npos) {
      return name.substr(8, cut - 8) + "/" + name.substr(cut + 2);
    }
  }
  const nlohmann::json config = read_config_json(source);
  const auto named = config.find("_name_or_path");
  if (named != config.end() && named->is_string()) {
    const std::string name = named->get<std::string>();
    if (std::count(name.begin(), name.end(), '/') == 1 && name.front() != '/' && is_plain(name)) {
      return name;
    }
  }
  const std::string name = folder.filename().string();
  return is_plain(name) ? name : "source";
}

// The lines about the licence in the header of the source's own card.
std::string license_lines(const std::string& source) {
  const std::string path = source + "/README.md";
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return "";
  std::istringstream card(read_text_file(path));
  std::string line, found;
  if (!std::getline(card, line) || line != "---") return "";
  while (std::getline(card, line) && line != "---") {
    for (const char* key : {"license: ", "license_name: ", "license_link: "}) {
      if (line.starts_with(key) && is_plain(line.substr(std::string(key).size()))) {
        found += line + "\n";
      }
    }
  }
  return found;
}

std::string header(const Run& run, const ModelConfig& exported) {
  const bool hybrid = exported.is_hybrid();
  return fmt::format(
      "---\nbase_model: {}\n{}library_name: transformers\npipeline_tag: text-generation\ntags:\n"
      "- sala-train\n{}---\n",
      base_model(run.recipe.source), license_lines(run.recipe.source),
      hybrid ? "- minicpm_sala\n- linear-attention\n- sparse-attention\n" : "");
}

std::string use(const ModelConfig& exported, bool own_code) {
  const bool trust = exported.is_hybrid() || own_code;
  return fmt::format(
      "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
      "tokenizer = AutoTokenizer.from_pretrained(\".\"{})\n"
      "model = AutoModelForCausalLM.from_pretrained(\".\", dtype=\"bfloat16\"{})\n```\n",
      exported.is_hybrid() ? ", trust_remote_code=False" : "",  // else transformers 5 asks
      trust ? ", trust_remote_code=True" : "");
}

}  // namespace

std::string model_card(const Run& run, const ModelConfig& exported) {
  const std::string source = base_model(run.recipe.source);
  const bool own_code = read_config_json(run.recipe.source).contains("auto_map");
  std::string what = fmt::format("# {}, trained further\n\nMade by sala-train.", source), needs;
  if (exported.is_hybrid()) {
    std::string kept;
    for (int64_t layer : kept_layers(exported)) kept += fmt::format(" {}", layer);
    what = fmt::format(
        "# Hybrid of {}\n\nMade by sala-train: {} of {} layers keep (block-sparse) softmax "
        "attention (layers{}); the others are lightning attention.",
        source, kept_layers(exported).size(), exported.num_layers, kept);
    needs =
        "The modelling code is in this folder: plain PyTorch for transformers 4.56 or later, or 5, "
        "on any device; on an NVIDIA GPU in bf16 with flash-linear-attention's kernels where they "
        "are installed.\n\n";
  }
  return fmt::format(
      "{}\n{} Tokens seen in training: {}.\n\n{}\n{}"
      "Held-out results (nats per token; KL to the source model):\n\n```\n{}```\n\n"
      "Recipe, every value stated:\n\n```yaml\n{}```\n\n"
      "`SHA256SUMS` has the hashes of the files: `sha256sum -c SHA256SUMS`.\n",
      header(run, exported), what, run.tokens_seen, use(exported, own_code), needs,
      report_text(run.evaluations, run.verdicts), resolved_yaml(run.recipe));
}

}  // namespace sala
