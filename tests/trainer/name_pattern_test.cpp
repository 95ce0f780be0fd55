// Patterns over tensor names: what they find, what they refuse, and that none takes long.
#include "trainer/recipe/name_pattern.h"

#include <gtest/gtest.h>

#include <random>
#include <regex>

namespace sala {
namespace {

const std::string kName = "model.layers.12.self_attn.q_proj.weight";

TEST(NamePattern, FindsWhatIsAnywhereInTheName) {
  for (const char* found : {"self_attn",
                            "layers\\.12\\.",
                            "layers\\.(1|12)\\..*q_proj",
                            "^model",
                            "weight$",
                            "[qkv]_proj",
                            "layers\\.\\d+\\.",
                            "(?:mlp|self_attn)\\.q",
                            "",
                            "q_(proj|norm)?\\.",
                            "[^a-z]12",
                            "a*",
                            "x|",
                            "()",
                            "(|x)*weight",
                            "l.y+e?rs",
                            "^(model|lm_head)\\.",
                            "\\w\\.\\d",
                            "[0-9]+\\D",
                            "[a-c-]t"}) {
    EXPECT_TRUE(NamePattern(found).found_in(kName)) << found;
  }
  for (const char* absent :
       {"layers\\.1\\.", "^layers", "model$", "k_proj", "[A-Z]", "layers_12", "\\s", "mlp|embed"}) {
    EXPECT_FALSE(NamePattern(absent).found_in(kName)) << absent;
  }
}

TEST(NamePattern, RefusesWhatItDoesNotRead) {
  for (const char* bad : {"(", ")", "a)", "[", "[a", "*", "+a", "(*)", "a|*", "a{2}", "\\", "\\b",
                          "\\1", "(?=a)", "(?<n>a)", "[b-a]", "[[:alpha:]]"}) {
    EXPECT_THROW(NamePattern{bad}, std::runtime_error) << bad;
  }
}

// The standard library's matcher as the other opinion, where it is safe to ask.
TEST(NamePattern, AgreesWithTheStandardLibrary) {
  std::mt19937 random(5);
  const std::string signs = "ab.()|*+?^$";
  int compared = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text, name;
    for (size_t n = 1 + random() % 7; n > 0; --n) text += signs[random() % signs.size()];
    for (size_t n = random() % 6; n > 0; --n) name += "abc"[random() % 3];
    try {
      const std::regex other(text);
      const NamePattern pattern(text);
      EXPECT_EQ(pattern.found_in(name), std::regex_search(name, other)) << text << " in " << name;
      ++compared;
    } catch (const std::runtime_error&) {  // one of the two does not read it
    }
  }
  EXPECT_GT(compared, 500);
}

TEST(NamePattern, TakesTimeByLengthAlone) {
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested = "(" + nested + "a*)*";
  EXPECT_FALSE(NamePattern(nested + "Z$").found_in(std::string(200, 'a')));
  EXPECT_FALSE(NamePattern("(a|a)*(a|a)*(a|a)*(a|a)*Z").found_in(std::string(2000, 'a')));
}

}  // namespace
}  // namespace sala
