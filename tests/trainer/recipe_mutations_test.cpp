// Recipes that nobody would write: random changes of a recipe's tree and of its bytes. Each is read
// and, with what stands behind it, checked as before a run; whatever it is, it ends in a list of
// problems, or in a recipe that prints as text which reads back to the same.
// Another seed for each repetition: --gtest_shuffle --gtest_repeat=10.
#include <gtest/gtest.h>

#include <random>

#include "tests/trainer/preflight_cases.h"
#include "trainer/recipe/field_values.h"
#include "trainer/recipe/yaml_reader.h"

namespace sala {
namespace {

using namespace recipe_cases;
using Kind = YamlNode::Kind;

constexpr int kNumRecipes = 200;  // of each kind

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  void change_tree(YamlNode& root) {
    for (size_t n = 1 + draw(3); n > 0; --n) change_node(any_node(root), any_node(root));
  }

  void change_bytes(std::string& text) {
    for (size_t n = 1 + draw(4); n > 0; --n) {
      const size_t at = draw(text.size());
      switch (draw(4)) {
        case 0:
          text[at] = static_cast<char>(draw(256));
          break;
        case 1:
          text.insert(at, 1, "{}[]:,-*&!%@`'\"|>#~\t\n \\<?"[draw(26)]);
          break;
        case 2:
          text.erase(at, 1 + draw(8));
          break;
        default:
          text.insert(at, text.substr(draw(text.size()), draw(40)));
      }
      if (text.empty()) text = " ";
    }
  }

 private:
  size_t draw(size_t below) { return below == 0 ? 0 : random_() % below; }

  YamlNode& any_node(YamlNode& node) {
    const size_t size = node.members.size() + node.items.size();
    if (size == 0 || draw(6) == 0) return node;
    const size_t i = draw(size);
    return any_node(i < node.members.size() ? node.members[i].value
                                            : node.items[i - node.members.size()]);
  }

  void change_node(YamlNode& node, const YamlNode& other) {
    static const char* const kValues[] = {"0",
                                          "1",
                                          "-1",
                                          "2",
                                          "9223372036854775807",
                                          "8388608G",
                                          "1G",
                                          "1M",
                                          "",
                                          "null",
                                          "~",
                                          "true",
                                          "kl",
                                          "uniform",
                                          "nan",
                                          "inf",
                                          "1e9",
                                          "1e-9",
                                          "1e308",
                                          "+1",
                                          "/dev/null",
                                          "(((",
                                          ".",
                                          "a",
                                          "b",
                                          "align",
                                          "swap",
                                          "train",
                                          "/",
                                          "a\nb\x01c",
                                          "wsd",
                                          "\xf0\x9f\x90\x8d"};
    const YamlNode copy = other;  // may hold `node`, or lie in it
    switch (draw(7)) {
      case 0:
        node = copy;
        break;
      case 1:
        node = {};
        node.kind = draw(2) == 0 ? Kind::kMap : Kind::kList;
        break;
      case 2:
        if (!node.members.empty()) node.members.erase(node.members.begin() + any_member(node));
        if (!node.items.empty()) node.items.erase(node.items.begin() + draw(node.items.size()));
        break;
      case 3:
        if (node.kind == Kind::kMap) {
          node.members.emplace_back().key = any_value(kValues);
          node.members.back().value = copy;
        }
        if (node.kind == Kind::kList) node.items.push_back(copy);
        break;
      case 4:
        if (!node.members.empty()) node.members[any_member(node)].key = any_value(kValues);
        break;
      default:
        node = {};
        node.kind = Kind::kScalar;
        node.scalar = any_value(kValues);
    }
  }

  size_t any_member(const YamlNode& node) { return draw(node.members.size()); }
  template <size_t N>
  const char* any_value(const char* const (&values)[N]) {
    return values[draw(N)];
  }

  std::mt19937_64 random_;
};

std::string flow_text(const YamlNode& node) {
  std::string out;
  switch (node.kind) {
    case Kind::kMap:
      for (const YamlMember& member : node.members) {
        out += (out.empty() ? "" : ", ") + format_text(member.key) + ": " + flow_text(member.value);
      }
      return "{" + out + "}";
    case Kind::kList:
      for (const YamlNode& item : node.items) out += (out.empty() ? "" : ", ") + flow_text(item);
      return "[" + out + "]";
    case Kind::kScalar:
      return format_text(node.scalar);
    case Kind::kNull:
      break;
  }
  return "null";
}

// How it ended: "problems", "runs", or "no YAML".
std::string read_and_check(const TemporaryFolder& folder, const std::string& text) {
  std::unique_ptr<Recipe> recipe;
  try {
    recipe = read_toy(folder, text);
  } catch (const std::runtime_error& error) {
    EXPECT_LT(std::string(error.what()).size(), 1000u) << text;
    return "no YAML";
  }
  const bool readable = recipe->problems.empty();
  if (readable) {
    const std::string once = resolved_yaml(*recipe);
    const auto again = read_recipe(folder.write("again.yaml", once));
    EXPECT_EQ(again->problems.text(), "") << once;
    EXPECT_EQ(resolved_yaml(*again), once) << text;
  }
  std::vector<std::string> warnings;
  const CheckDevice device{false, "a CPU", 24e9, 1e11};
  const auto context = preflight(*recipe, {.device = device}, warnings);
  for (const std::string& line : recipe->problems.lines()) {
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    EXPECT_LT(line.size(), 2100u) << line;
  }
  return recipe->problems.empty() ? "runs" : "problems";
}

uint64_t seed() {
  return 17 + static_cast<uint64_t>(testing::UnitTest::GetInstance()->random_seed());
}

TEST(RecipeMutations, OfTheTreeEndInProblemsOrInAWholeRecipe) {
  TemporaryFolder folder;
  write_toy(folder);
  std::vector<YamlProblem> none;
  const YamlNode tree = read_yaml_file(folder.write("recipe.yaml", kToyRecipe), none);
  ASSERT_EQ(read_and_check(folder, flow_text(tree)), "runs");
  Mutator mutator(seed());
  std::map<std::string, int> ends;
  for (int i = 0; i < kNumRecipes; ++i) {
    YamlNode changed = tree;
    mutator.change_tree(changed);
    ++ends[read_and_check(folder, flow_text(changed))];
  }
  EXPECT_GT(ends["problems"], kNumRecipes / 4);
}

TEST(RecipeMutations, OfTheBytesEndInProblemsOrInAWholeRecipe) {
  TemporaryFolder folder;
  write_toy(folder);
  Mutator mutator(seed());
  std::map<std::string, int> ends;
  for (int i = 0; i < kNumRecipes; ++i) {
    std::string text = kToyRecipe;
    mutator.change_bytes(text);
    ++ends[read_and_check(folder, text)];
  }
  EXPECT_GT(ends["problems"] + ends["no YAML"], kNumRecipes / 4);
}

}  // namespace
}  // namespace sala
