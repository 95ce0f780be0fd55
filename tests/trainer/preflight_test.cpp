// The checks before a run: what would stop it in any stage is found before the first.
#include "trainer/checks/preflight.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <sstream>

#include "model/families/families.h"
#include "tests/data/test_tasks.h"
#include "tests/trainer/preflight_cases.h"
#include "trainer/planning/plan.h"

namespace sala {
namespace {

namespace fs = std::filesystem;
using namespace recipe_cases;

const CheckDevice kCpu{false, "a CPU", 24e9, 1e11};

struct Checked {
  int code;
  std::string text;
};

Checked checked(Recipe& recipe, const CheckDevice& device = kCpu, int ranks = 2) {
  std::ostringstream out;
  const int code = check_recipe(recipe, device, ranks, out);
  return {code, out.str()};
}

struct Hopeless {
  const char *from, *to;  // the edit of kToyRecipe; "" = none
  std::function<void(const TemporaryFolder&)> spoil;
  const char* problem;
};

void none(const TemporaryFolder&) {}

const Hopeless kHopeless[] = {
    {"keep: 2", "layers: [0, 9]", none,
     "swap.layers: 9 is no layer of the source, whose last is 2"},
    {"keep: 2", "keep: 4", none, "swap.keep: keeps 4 layers, but the source has 3"},
    {"match: self_attn, lr", "match: self_atn, lr", none,
     "distill.rules[0].match: 'self_atn' is found in the name of no tensor (such as "
     "'model.embed_tokens.weight')"},
    {"data: {a: 1, b: 2}, lr: 3e-3}", "data: {a: 1}, lr: 3e-3, rules: [{match: mlp}]}", none,
     "align.rules[0].match: 'mlp' is found in the name of no tensor"},
    {"{match: self_attn, lr_scale: 2}", "{match: '.', freeze: true}", none,
     "distill.rules: every tensor is frozen"},
    {"data: {b: 1}, lr: 1e-3,", "data: {b: 1}, end_lr: 2e-3,", none,
     "train.end_lr: 0.002 is above lr, 0.001 by the model's size"},
    {"[64, 150]", "[64, 6]", none, "evaluate.needle_lengths: a prompt of 6 tokens has no room"},
    {"row_length: 128, recall", "row_length: 400, recall", none,
     "score.row_length: no document of its sources has 400 tokens"},
    {"[a.h5]", "[.]", none, "data.sources.a.files: "},
    {"[a.h5]", "['*.h6']", none, "no file matches"},
    {"folder: run,", "folder: needles.json/run,", none, "is no folder"},
    {"folder: run,", "folder: /proc/run,", none, "run.folder: cannot "},
    {"batch_tokens: 512, data: {b", "batch_tokens: 1G, data: {b", none,
     "stages[4].train: needs about "},
    {"sources: [a, b]\n      tokens: 1K\n      row_length: 128",
     "sources: [b]\n      tokens: 2\n      row_length: 2",
     [](const TemporaryFolder& folder) {
       write_store(folder / "b.h5", store_of({1, 1, 1}));
     },
     "evaluate.sources: held-out source b has no token to predict"},
    {"needle_source: a", "needle_source: b",
     [](const TemporaryFolder& folder) {
       write_store(folder / "b.h5", store_of({1, 1, 1}));
     },
     "evaluate.needle_source: source b has no text for a haystack"},
    {"", "", [](const TemporaryFolder& folder) { fs::remove(folder / "model/model.safetensors"); },
     "source: "},
    {"", "",
     [](const TemporaryFolder& folder) {
       fs::resize_file(folder / "model/model.safetensors", 900);
     },
     "model.safetensors"},
    {"", "", [](const TemporaryFolder& folder) { folder.write("model/tokenizer.json", "{ }"); },
     "data.needles: "},
    {"", "", [](const TemporaryFolder& folder) { folder.write("out/mine", "x"); },
     "export.folder: "},
    {"", "",
     [](const TemporaryFolder& folder) {
       write_model(folder, edited(kToyConfig, "\"llama\"", "\"mistral\", \"sliding_window\": 100"));
     },
     "rows of 128 tokens, but "},
    {"", "",
     [](const TemporaryFolder& folder) {
       fs::remove(folder / "model/tokenizer.json");
       TestStore other = store_of({20, 30});
       other.tokenizer_hash = "0123456789abcdef";
       write_store(folder / "b.h5", other);
     },
     "made with another tokenizer than"},
};

TEST(Preflight, FindsWhatWouldStopALaterStage) {
  for (const Hopeless& hopeless : kHopeless) {
    TemporaryFolder folder;
    write_toy(folder);
    hopeless.spoil(folder);
    std::string text = edited(kToyRecipe, "folder: out", "folder: " + folder / "out");
    if (*hopeless.from != '\0') text = edited(text, hopeless.from, hopeless.to);
    const auto recipe = read_toy(folder, text);
    const Checked found = checked(*recipe);
    EXPECT_EQ(found.code, 2) << hopeless.to << found.text;
    EXPECT_NE(found.text.find(hopeless.problem), std::string::npos)
        << hopeless.problem << found.text;
    EXPECT_FALSE(fs::exists(folder / "run")) << "a check leaves nothing behind";
    EXPECT_TRUE(fs::exists(folder / "out/mine") || !fs::exists(folder / "out"));
  }
}

TEST(Preflight, QuestionsAndTasksThatAreNotThereAreNamed) {
  TemporaryFolder folder;
  write_toy(folder);
  TestTasks tasks;
  tasks.hash = xxh3_64_hex("{}", 2);
  tasks.write(folder / "tasks.h5");
  folder.write("quiz.json",
               R"({"format": "sala-choices", "vocab_size": 1000, "tokenizer_hash": ")" +
                   xxh3_64_hex("{}", 2) + R"(", "items": [{"answer": 0, "contexts":
        [[1], [1]], "choices": [[2], [3]], "choice_chars": [1, 1]}]})");
  const auto found = [&](const std::string& data, const std::string& evaluate) {
    std::string text = edited(kToyRecipe, "needles: needles.json", "needles: needles.json" + data);
    text = edited(text, "needle_source: a\n", "needle_source: a" + evaluate + "\n");
    const auto recipe = read_toy(folder, edited(text, "folder: out", "folder: " + folder / "out"));
    return checked(*recipe).text;
  };
  const std::string both = "\n  tasks: tasks.h5\n  choices: [quiz.json]", at = "\n      ";
  const auto expect_said = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  };
  expect_said(found(both, at + "tasks: [all]" + at + "choices: [quiz]"), "ok: this recipe can run");
  expect_said(found("", at + "tasks: [all]"), "evaluate.tasks: needs data.tasks");
  expect_said(found("", at + "choices: [quiz]"), "'quiz': no set of data.choices has this name");
  expect_said(found(both, at + "choices: [arc]"), "(there is: quiz)");
  expect_said(found(both, at + "tasks: [vt]"),
              "'vt': data.tasks has no such task; it has niah, qa");
  expect_said(found(both, at + "tasks: [qa]" + at + "task_lengths: [16, 99]"),
              "99: data.tasks has prompts of 16, 32 tokens");
  expect_said(found("\n  tasks: needles.json", at + "tasks: [all]"), "data.tasks: ");
  expect_said(found("\n  choices: [needles.json]", ""), "data.choices: ");
}

TEST(Preflight, TextFilesAndMachineAreCheckedAtOnce) {
  TemporaryFolder folder;
  write_toy(folder);
  fs::remove(folder / "b.h5");
  std::string text = edited(kToyRecipe, "lr: 1e-3", "lr: fast");
  text = edited(text, "keep: 2", "layers: [0, 9]");
  text = edited(text, "run: {", "run: {sed: 1, ");
  const auto recipe = read_toy(folder, text);
  const Checked found = checked(*recipe);
  EXPECT_EQ(found.code, 2);
  for (const char* part : {"run.sed: unknown key", "train.lr: expected a number",
                           "data.sources.b.files", "9 is no layer of the source"}) {
    EXPECT_NE(found.text.find(part), std::string::npos) << part << found.text;
  }
}

TEST(Preflight, WhatIsDoneAndWhatIsUnderWayAreNotAskedAgain) {
  TemporaryFolder folder;
  write_toy(folder);
  folder.write("out/mine", "x");
  const std::string text = edited(kToyRecipe, "folder: out", "folder: " + folder / "out");
  for (int64_t first = 0; first <= 7; ++first) {
    const auto recipe = read_toy(folder, text);
    std::vector<std::string> warnings;
    preflight(*recipe, {.device = kCpu, .first_stage = first, .continues = true}, warnings);
    EXPECT_EQ(recipe->problems.empty(), first >= 6) << first << recipe->problems.text();
  }
}

TEST(Preflight, AnExportIsOfAModelThatWasMadeIntoAFolderOfItsOwn) {
  TemporaryFolder folder;
  write_toy(folder);
  const std::string head =
      edited(kToyRecipe.substr(0, kToyRecipe.find("stages:")), "folder: run", "folder: /r") +
      "stages:\n";
  const std::string train =
      "  - train: {tokens: 8K, row_length: 256, batch_tokens: 512, data: {b: 1}, lr: 1e-3}\n";
  const auto problems = [&](const std::string& stages) {
    return read_toy(folder, head + stages)->problems.text();
  };
  EXPECT_EQ(problems(train + "  - export: {folder: /r/export}\n"), "");
  EXPECT_NE(problems("  - export: {folder: out}\n" + train).find("converted or trained"),
            std::string::npos);
  for (const char* own : {"/r/checkpoints", "/r/./scores/x", "/r/checkpoints/../checkpoints/x"}) {
    const std::string found = problems(train + "  - export: {folder: " + own + "}\n");
    EXPECT_NE(found.find("is a folder of the run itself"), found.npos) << own << ": " << found;
  }
}

TEST(Preflight, AHybridIsNoSourceOfAConversion) {
  TemporaryFolder folder;
  write_toy(folder);
  const ModelConfig source = read_model_config(folder / "model");
  const ModelConfig hybrid = planned_hybrid(*read_toy(folder, kToyRecipe), source);
  fs::remove(folder / "model/model.safetensors");
  write_model(folder, hybrid_config_json(hybrid).dump());
  const auto recipe = read_toy(folder, kToyRecipe);
  const Checked found = checked(*recipe);
  EXPECT_EQ(found.code, 2);
  for (const char* type : {"align", "score", "swap"}) {
    EXPECT_NE(found.text.find(std::string("is a hybrid already; ") + type), std::string::npos)
        << found.text;
  }
}

TEST(Check, PlansForGpusWhereThereAreNoneAndSaysSo) {
  TemporaryFolder folder;
  write_toy(folder);
  const auto recipe = read_toy(folder, edited(kToyRecipe, "device: cpu", "device: cuda"));
  const Checked found = checked(*recipe, {true, "no GPU here", 0, 1e15, false});
  EXPECT_EQ(found.code, 0) << found.text;
  EXPECT_NE(found.text.find("NOTE: device: cuda, but "), std::string::npos) << found.text;
}

constexpr const char* kSmollm2 = R"({"model_type": "llama", "hidden_size": 576,
  "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
  "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true,
  "hidden_act": "silu", "eos_token_id": 2})";

TEST(Check, EveryShippedRecipeCanRunOnceItsInputsAreThere) {
  TemporaryFolder folder;
  write_toy(folder);
  write_model(folder, kSmollm2);
  write_store(folder / "a.h5", store_of({6000}));
  TestTasks tasks;
  tasks.hash = xxh3_64_hex("{}", 2);
  tasks.write(folder / "tasks.h5");
  tasks.set_lengths({4 << 10, 8 << 10, 32 << 10, 128 << 10});  // for recipes that name some
  tasks.write(folder / "long_tasks.h5");
  const CheckDevice device{true, "a large GPU", 0, 1e15};
  const fs::path here = fs::current_path();  // where an export of the demo may lie
  fs::current_path(folder / "");
  for (const std::string& file : shipped_recipes()) {
    const auto recipe = read_recipe(file);
    recipe->source = folder / "model";
    recipe->run.folder = folder / "run";
    for (auto& [name, source] : recipe->data.sources) source.files = {folder / "a.h5"};
    recipe->data.needles = folder / "needles.json";
    std::stringstream text;
    text << std::ifstream(file).rdbuf();
    const bool names_lengths = text.str().find("task_lengths") != std::string::npos;
    if (!recipe->data.tasks.empty()) {
      recipe->data.tasks = folder / (names_lengths ? "long_tasks.h5" : "tasks.h5");
    }
    recipe->run.keep_checkpoints = 1;
    const Checked found = checked(*recipe, device, 64);
    EXPECT_EQ(found.code, 0) << file << found.text;
    const int64_t kept = recipe->num_kept();
    EXPECT_NE(
        found.text.find(fmt::format("hybrid: {} sparse and {} lightning layers", kept, 30 - kept)),
        std::string::npos)
        << file << found.text;
  }
  fs::current_path(here);
  const auto recipe = read_toy(folder, edited(kToyRecipe, "keep: 2", "keep: 8"));
  const Checked small = checked(*recipe, {true, "a small GPU", 1e9, 1e15});
  EXPECT_EQ(small.code, 2);
  EXPECT_NE(small.text.find("stages[3].distill: needs about "), std::string::npos) << small.text;
}

}  // namespace
}  // namespace sala
