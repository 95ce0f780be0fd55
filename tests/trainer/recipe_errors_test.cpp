// Bad recipes: each gives one line with the place and the cause.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "tests/trainer/recipe_cases.h"

namespace sala {
namespace {

using recipe_cases::complaint;
using recipe_cases::edited;
using recipe_cases::kGood;
using recipe_cases::TemporaryFolder;

struct BadRecipe {
  const char *from, *to;  // the edit of kGood
  const char* expected;   // the whole complaint; a * at the end stands for a library's own words
};

const BadRecipe kBadRecipes[] = {
    // The text itself.
    {"run: {folder: run, seed: 3}", "run: {folder: run, seed: 3",
     "bad.yaml:3:6: not valid YAML: a { is not closed with }"},
    {"seed: 3", "seed: 3, seed: 4",
     "bad.yaml:2:29: seed: key given twice (first in line 2); keep one"},
    {"data: {books: 1}", "data: *mix",
     "bad.yaml:30:13: not valid YAML: * begins an alias, and no anchor (&name) before it has its "
     "name: put a pattern in quotes, \"*.h5\""},
    {"files: web.h5", "files: [*.h5]",
     "bad.yaml:7:19: not valid YAML: * begins an alias, and no anchor (&name) before it has its "
     "name: put a pattern in quotes, \"*.h5\""},
    {"files: web.h5", "files: * ",
     "bad.yaml:7:19: not valid YAML: * begins an alias (*name): put a pattern in quotes, \"*.h5\""},
    {"      tokens: 20K", "\ttokens: 20K",
     "bad.yaml:19:1: not valid YAML: a tab in the indentation: use spaces only"},
    {"source: model", "source: \"model",
     "bad.yaml:1:9: not valid YAML: this quote is opened and not closed"},
    {"export: {folder: out}", "export:\n      folder: 'out",
     "bad.yaml:34:15: not valid YAML: this quote is opened and not closed"},
    {"source: model", "source: @model",
     "bad.yaml:1:9: not valid YAML: no value can begin with this character: put the text in "
     "quotes"},
    {"source: model", "source: a: b",
     "bad.yaml:1:10: not valid YAML: a ':' where no value can begin: put a text that holds ': ' in "
     "quotes, and look at the indentation"},
    // Keys that depend on others.
    {"data: {web: 1, books: 0.5}\n",
     "data: {web: 1, books: 0.5}\n      ce_weights: {web: 1, boks: 0.5}\n",
     "bad.yaml:23:34: stages[3].distill.ce_weights.boks: is no source of the stage's data"},
    {"data: {web: 1, books: 0.5}\n",
     "data: {web: 1, books: 0.5}\n      ce_weights: {web: 1.5}\n",
     "bad.yaml:23:25: stages[3].distill.ce_weights.web: must be between 0 and 1, but is 1.5"},
    // Keys.
    {"seed: 3", "sed: 3", "bad.yaml:2:20: run.sed: unknown key; did you mean 'seed'?"},
    {"source: model\n", "sorce: model\n",
     "bad.yaml:1:1: sorce: unknown key; did you mean 'source'?"},
    {"source: model\n", "", "bad.yaml:1:1: source: missing: this key is required"},
    {"run: {folder: run, seed: 3}", "run: {seed: 3}",
     "bad.yaml:2:6: run.folder: missing: this key is required"},
    {"      tokens: 20K\n", "",
     "bad.yaml:18:5: stages[3].distill.tokens: missing: this key is required"},
    {"      tokens: 20K\n", "      token: 20K\n",
     "bad.yaml:19:7: stages[3].distill.token: unknown key; did you mean 'tokens'?"},
    {"lr_scale: 3", "lr_scal: 3",
     "bad.yaml:25:30: stages[3].distill.rules[0].lr_scal: unknown key; did you mean 'lr_scale'?"},
    {"qk_norm: drop", "width: 7",
     "bad.yaml:4:3: model.width: unknown key; there are: qk_norm, sparse"},
    // Types and units.
    {"seed: 3", "seed: three",
     "bad.yaml:2:26: run.seed: expected a whole number, optionally with K, M or G (1024-based), "
     "but is 'three'"},
    {"tokens: 20K", "tokens: -20K",
     "bad.yaml:19:15: stages[3].distill.tokens: must not be negative: -20K"},
    {"tokens: 20K", "tokens: 20k",
     "bad.yaml:19:15: stages[3].distill.tokens: expected a whole number, optionally with K, M or "
     "G (1024-based), but is '20k'; did you mean 20K?"},
    {"tokens: 20K", "tokens: 1.5K",
     "bad.yaml:19:15: stages[3].distill.tokens: expected a whole number, optionally with K, M or "
     "G (1024-based), but is '1.5K'"},
    {"tokens: 20K", "tokens: 99999999999G",
     "bad.yaml:19:15: stages[3].distill.tokens: must be at most 1048576G, but is 99999999999G"},
    {"lr: 1e-4", "lr: fast",
     "bad.yaml:31:11: stages[4].train.lr: expected a number, but is 'fast'"},
    {"lr: 1e-4", "lr: [1e-4]",
     "bad.yaml:31:11: stages[4].train.lr: expected a number, but is a list"},
    {"lr: 1e-4", "lr: inf", "bad.yaml:31:11: stages[4].train.lr: expected a number, but is 'inf'"},
    {"lr_scale: 3", "freeze: yes",
     "bad.yaml:25:38: stages[3].distill.rules[0].freeze: expected true or false, but is 'yes'"},
    {"schedule: wsd", "schedule: wds",
     "bad.yaml:32:17: stages[4].train.schedule: expected one of constant, cosine, exponential, "
     "wsd, but is 'wds'; did you mean 'wsd'?"},
    {"{folder: out}", "out", "bad.yaml:33:5: stages[5].export: expected a mapping, but is 'out'"},
    {"data: {books: 1}", "data: books",
     "bad.yaml:30:13: stages[4].train.data: expected {name: weight}, but is 'books'"},
    {"model:\n  qk_norm: drop", "model: 3", "bad.yaml:3:8: model: expected a mapping, but is '3'"},
    {"folder: run,", "folder: ,", "bad.yaml:2:15: run.folder: expected text, but is nothing"},
    // Stages.
    {"  - swap: {keep: 2}", "  - swop: {keep: 2}",
     "bad.yaml:17:5: stages[2]: unknown type 'swop'; did you mean 'swap'?"},
    {"  - swap: {keep: 2}", "  - swap:\n    keep: 2",
     "bad.yaml:17:5: stages[2]: expected '- type: {options}' with one type, but is a mapping with "
     "2 keys (swap, keep); indent the options below the type"},
    {"  - swap: {keep: 2}", "  - swap",
     "bad.yaml:17:5: stages[2]: expected '- type: {options}' with one type, but is 'swap'"},
    {"  - score: {method: uniform}\n  - swap: {keep: 2}",
     "  - swap: {keep: 2}\n  - score: {method: uniform}",
     "bad.yaml:17:5: stages[2].score: score must come before swap (stages[1]): it works on the "
     "full-attention model"},
    {"  - export: {folder: out}", "  - swap: {name: again, keep: 2}",
     "bad.yaml:33:5: stages[5].swap: swap may come once, and stages[2] is one already"},
    {"  - train:\n", "  - train:\n      name: distill\n",
     "bad.yaml:27:13: stages[4].train.name: stages[3] is called 'distill' too: give each its own "
     "name"},
    {"  - train:\n", "  - train:\n      name: a/b\n",
     "bad.yaml:27:13: stages[4].train.name: must be letters, digits, _ and -, a letter first, at "
     "most "
     "64, but is 'a/b'"},
    {"  - align:\n",
     "  - train: {tokens: 1K, row_length: 512, batch_tokens: 512, data: {web: 1}, "
     "lr: 1, name: early}\n  - align:\n",
     "bad.yaml:10:5: stages[0].train: train must come after swap (stages[3]), which builds the "
     "hybrid from the source and would drop what was trained"},
    {"  - score: {method: uniform}\n", "",
     "bad.yaml:16:18: stages[1].swap.keep: `keep` chooses by score: put a score stage before it "
     "(method: uniform costs nothing), or name the layers instead"},
    {"swap: {keep: 2}", "swap: {layers: [1, 2]}",
     "bad.yaml:17:20: stages[2].swap.layers: must hold layer 0: those who load the exported model "
     "count tokens there"},
    {"swap: {keep: 2}", "swap: {layers: [0, 2, 2]}",
     "bad.yaml:17:20: stages[2].swap.layers: names a layer twice: give each once"},
    {"swap: {keep: 2}", "swap: {keep: 2, force_ends: false}",
     "bad.yaml:17:33: stages[2].swap.force_ends: false may drop layer 0, which the export needs: "
     "leave it true, or name the layers"},
    {"  - score: {method: uniform}", "  - score: kl",
     "bad.yaml:16:5: stages[1].score: expected a mapping, but is 'kl'"},
    {"export: {folder: out}", "export: {folder: .}",
     "bad.yaml:33:22: stages[5].export.folder: . would hold run.folder, run: choose a folder of "
     "its "
     "own\nbad.yaml:33:22: stages[5].export.folder: . would hold source, model: choose a folder of "
     "its own"},
    // Paths.
    {"folder: run,", "folder: ~user/run,",
     "bad.yaml:2:15: run.folder: ~ stands for your own home folder only, in '~user/run': write the "
     "path out"},
    {"source: model", "source: ${MODELS}/model",
     "bad.yaml:1:9: source: $ is not replaced by a variable's value in '${MODELS}/model': write "
     "the "
     "path out"},
    // Limits.
    {"tokens: 20K", "tokens: 9223372036854775807",
     "bad.yaml:19:15: stages[3].distill.tokens: must be at most 1048576G, but is "
     "9223372036854775807"},
    {"seed: 3", "seed: 3, keep_checkpoints: 0",
     "bad.yaml:2:47: run.keep_checkpoints: must be at least 1, but is 0"},
    {"qk_norm: drop", "sparse: {topk: 9223372036854775807}",
     "bad.yaml:4:18: model.sparse.topk: must be at most 1M, but is 9223372036854775807"},
    {"lr: 1e-4", "lr: 1e300",
     "bad.yaml:31:11: stages[4].train.lr: expected a number between -1000000000 and 1000000000 "
     "that "
     "is not too small for a double, but is 1e300"},
    {"match: self_attn", "match: \"a{2}\"",
     "bad.yaml:25:19: stages[3].distill.rules[0].match: 'a{2}' is not a pattern for names: { } "
     "(counted repetition) is not read here: write \\{ for the sign itself, at character 2"},
    // Arithmetic.
    {"tokens: 20K\n      row_length: 1K\n      batch_tokens: 2K",
     "tokens: 20K\n      row_length: 2K\n      batch_tokens: 5000",
     "bad.yaml:21:21: stages[3].distill.batch_tokens: 5000 is not a multiple of row_length 2048: "
     "use 4096 or 6144"},
    {"data: {books: 1}", "data: {boks: 1}",
     "bad.yaml:30:20: stages[4].train.data.boks: no such source in data.sources (there are: "
     "books, web)"},
    {"data: {books: 1}", "data: {books: 0}",
     "bad.yaml:30:21: stages[4].train.data.books: weight must be more than 0, but is 0"},
    {"data: {books: 1}", "data: {}", "bad.yaml:30:13: stages[4].train.data: names no source"},
    {"lr: 1e-4", "lr: -1e-4",
     "bad.yaml:31:11: stages[4].train.lr: must not be negative: -0.0001"},
    {"lr: 1e-4", "lr: 1e-4\n      end_lr: 1e-3",
     "bad.yaml:32:15: stages[4].train.end_lr: 0.001 is above lr 0.0001: schedules only go down"},
    {"schedule: wsd", "schedule: exponential",
     "bad.yaml:26:5: stages[4].train.end_lr: schedule: exponential needs an end_lr above 0"},
    {"schedule: wsd", "warmup_steps: 4",
     "bad.yaml:32:21: stages[4].train.warmup_steps: 4 steps of warm-up, but the stage has only 4 "
     "steps (tokens / batch_tokens)"},
    {"schedule: wsd", "decay_frac: 1.5",
     "bad.yaml:32:19: stages[4].train.decay_frac: must be in (0, 1], but is 1.5"},
    {"schedule: wsd", "beta2: 1",
     "bad.yaml:32:14: stages[4].train.beta2: must be in [0, 1), but is 1"},
    {"schedule: wsd", "micro_tokens: 1000",
     "bad.yaml:32:21: stages[4].train.micro_tokens: 1000 is not a multiple of row_length 1024: "
     "use 1024"},
    {"schedule: wsd", "evaluate_every: 2",
     "bad.yaml:32:23: stages[4].train.evaluate_every: needs an evaluate stage in the recipe, "
     "which says what to measure"},
    {"match: self_attn", "match: \"(\"",
     "bad.yaml:25:19: stages[3].distill.rules[0].match: '(' is not a pattern for names: a ( is "
     "not closed at character 1"},
    {"qk_norm: drop", "sparse: {window_size: 100}",
     "bad.yaml:4:25: model.sparse.window_size: must be a multiple of block_size 64, but is 100"},
    {"qk_norm: drop", "sparse: {block_size: 32}",
     "bad.yaml:4:24: model.sparse.block_size: must be 4 * kernel_stride = 64, but is 32"},
};

void expect_complaint(const std::string& found, std::string expected) {
  EXPECT_EQ(std::count(found.begin(), found.end(), '\n'),
            std::count(expected.begin(), expected.end(), '\n'))
      << "other lines: " << found;
  const bool whole = expected.back() != '*';
  if (!whole) expected.pop_back();
  EXPECT_EQ(whole ? found : found.substr(0, expected.size()), expected) << found;
}

TEST(RecipeErrors, EachBadRecipeGivesOneLineThatNamesTheCause) {
  TemporaryFolder folder;
  EXPECT_EQ(complaint(folder, kGood), "");
  for (const BadRecipe& bad : kBadRecipes) {
    expect_complaint(complaint(folder, edited(kGood, bad.from, bad.to)), bad.expected);
  }
}

struct BadOverride {
  const char *assignment, *expected;
};

const BadOverride kBadOverrides[] = {
    {"seed", "--set seed: expected key=value, such as run.seed=7"},
    {"run.sed=4", "--set run.sed: run.sed: unknown key; did you mean 'seed'?"},
    {"run.seed=x",
     "--set run.seed: run.seed: expected a whole number, optionally with K, M or G (1024-based), "
     "but is 'x'"},
    {"run.seed.more=1",
     "--set run.seed.more: 'more' cannot be inside of seed, which is a single "
     "value"},
    {"stages.sft.lr=1",
     "--set stages.sft.lr: no stage is called 'sft'; there are: align, score, "
     "swap, distill, train, export"},
    {"stages[9].lr=1", "--set stages[9].lr: stages[9] does not exist: there are 6"},
    {"stages.distill.rules.x.lr_scale=1",
     "--set stages.distill.rules.x.lr_scale: rules is a list: name its elements by number, "
     "rules[0]"},
    {"stages.train.lr=[1", "--set stages.train.lr: '[1': not valid YAML: a [ is not closed with ]"},
    {"stages.train.lr=-1", "--set stages.train.lr: stages[4].train.lr: must not be negative: -1"},
};

TEST(RecipeErrors, BadOverridesAreNamedAsGiven) {
  TemporaryFolder folder;
  for (const BadOverride& bad : kBadOverrides) {
    expect_complaint(complaint(folder, kGood, {bad.assignment}), bad.expected);
  }
}

TEST(RecipeErrors, AllProblemsComeAtOnceInTheFilesOrder) {
  TemporaryFolder folder;
  std::string text = edited(kGood, "seed: 3", "sed: 3");
  text = edited(text, "lr: 1e-4", "lr: fast");
  text = edited(text, "tokens: 20K\n      row_length: 1K\n      batch_tokens: 2K",
                "tokens: 20K\n      row_length: 2K\n      batch_tokens: 5000");
  EXPECT_EQ(complaint(folder, text),
            "bad.yaml:2:20: run.sed: unknown key; did you mean 'seed'?\n"
            "bad.yaml:21:21: stages[3].distill.batch_tokens: 5000 is not a multiple of row_length "
            "2048: use 4096 or 6144\n"
            "bad.yaml:31:11: stages[4].train.lr: expected a number, but is 'fast'");
}

// One key that cannot be read silences what depends on it, and nothing else.
TEST(RecipeErrors, ArithmeticIsDoneWithWhatCouldBeRead) {
  TemporaryFolder folder;
  std::string text = edited(kGood, "tokens: 20K\n      row_length: 1K\n      batch_tokens: 2K",
                            "tokens: many\n      row_length: 2K\n      batch_tokens: 5000");
  text = edited(text, "schedule: wsd", "schedule: wds\n      beta1: 2");
  text = edited(text, "files: web.h5", "file: web.h5");
  text = edited(text, "data: {books: 1}", "data: {boks: 1, web: x}");
  text = edited(text, "  - swap: {keep: 2}", "  - swap: [keep, 2]\n  - sort: {}");
  EXPECT_EQ(
      complaint(folder, text),
      "bad.yaml:7:11: data.sources.web.file: unknown key; did you mean 'files'?\n"
      "bad.yaml:17:5: stages[2].swap: expected a mapping, but is a list\n"
      "bad.yaml:18:5: stages[3]: unknown type 'sort'; there are: align, score, swap, "
      "distill, train, sft, evaluate, export\n"
      "bad.yaml:20:15: stages[4].distill.tokens: expected a whole number, optionally with K, M or "
      "G (1024-based), but is 'many'\n"
      "bad.yaml:22:21: stages[4].distill.batch_tokens: 5000 is not a multiple of row_length 2048: "
      "use 4096 or 6144\n"
      "bad.yaml:31:20: stages[5].train.data.boks: no such source in data.sources (there are: "
      "books, "
      "web)\n"
      "bad.yaml:31:28: stages[5].train.data.web: expected a number, but is 'x'\n"
      "bad.yaml:33:17: stages[5].train.schedule: expected one of constant, cosine, exponential, "
      "wsd, "
      "but is 'wds'; did you mean 'wsd'?\n"
      "bad.yaml:34:14: stages[5].train.beta1: must be in [0, 1), but is 2");
}

TEST(RecipeErrors, StagesThatAreNoMappingAreProblemsOfTheirOwn) {
  TemporaryFolder folder;
  for (const char* value : {"kl", "[1, 2]", "3"}) {
    for (const char* stage : {"align", "score", "swap", "distill", "train", "export"}) {
      const std::string found =
          complaint(folder, kGood, {std::string("stages.") + stage + "=" + value});
      EXPECT_NE(found.find("expected a mapping, but is"), std::string::npos) << found;
      EXPECT_EQ(found.find('\n'), std::string::npos) << found;
    }
  }
  EXPECT_NE(complaint(folder, "- a\n", {"x=1"}), "") << "a list for a recipe, and a key in it";
}

std::string repeated(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(RecipeErrors, HugeTextsGiveShortMessages) {
  TemporaryFolder folder;
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"source: model", "source: " + repeated("a", 100'000)},
           {"folder: run,", "folder: " + repeated("b", 100'000) + ","},
           {"schedule: wsd", "name: " + repeated("c", 100'000)},
           {"schedule: wsd", "schedule: " + repeated("d", 100'000)},
           {"schedule: wsd", repeated("e", 1000) + ": 1"},
           {"match: self_attn", "match: \"" + repeated("(", 100'000) + "\""},
           {"match: self_attn", "match: \"" + repeated("(", 2000) + "\""},
           {"seed: 3", "seed: " + repeated("[", 10'000)},
           {"seed: 3", "seed: " + repeated("9", 100'000)},
           {"  - swap: {keep: 2}", "  - " + repeated("swap", 200) + ": {keep: 2}"}}) {
    const std::string found = complaint(folder, edited(kGood, from, to));
    EXPECT_NE(found, "") << from;
    EXPECT_LT(found.size(), 2000u) << from;
    EXPECT_EQ(found.find('\n'), std::string::npos) << found;
  }
  EXPECT_NE(complaint(folder, edited(kGood, "seed: 3",
                                     "seed: " + repeated("[", 1000) + repeated("]", 1000)))
                .find("nested too deeply"),
            std::string::npos);
  const std::string many = complaint(folder, kGood + "\"a\\nb\": 1\nc: 1\nd: {x: \"1\\n2\"}\n");
  EXPECT_EQ(std::count(many.begin(), many.end(), '\n'), 2) << many;
  EXPECT_LT(complaint(folder, "x: " + repeated("y", 2 << 20)).size(), 200u);
  EXPECT_LT(complaint(folder, kGood, {repeated("a.", 50'000) + "b=1"}).size(), 300u);
}

// A few hundred bytes that stand for a billion values.
TEST(RecipeErrors, BombsOfAliasesAreRefusedAtOnce) {
  TemporaryFolder folder;
  std::string lists = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n", keys = "a0: &a0 {x: 1, y: 2}\n";
  for (int i = 1; i < 12; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    const std::string head = "a" + std::to_string(i) + ": &a" + std::to_string(i);
    lists += head + " [" + repeated(before + ", ", 8) + before + "]\n";
    keys += head + " {<<: [" + repeated(before + ", ", 8) + before + "]}\n";
  }
  for (const std::string& text : {lists, keys}) {
    EXPECT_NE(complaint(folder, text).find("more than 100000 values"), std::string::npos);
  }
}

TEST(RecipeErrors, FilesThatAreNoRecipeAreNamed) {
  TemporaryFolder folder;
  EXPECT_EQ(complaint(folder, ""), "bad.yaml: the recipe is empty");
  EXPECT_EQ(complaint(folder, "- a\n"), "bad.yaml:1:1: expected a mapping, but is a list");
  EXPECT_EQ(complaint(folder, kGood + "---\nsource: x\n"),
            "bad.yaml: expected one YAML document, but '---' starts a second");
  EXPECT_THROW(read_recipe(folder / "absent.yaml"), std::runtime_error);
  EXPECT_THROW(read_recipe(folder / ""), std::runtime_error);
}

}  // namespace
}  // namespace sala
