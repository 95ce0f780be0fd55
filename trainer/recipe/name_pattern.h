// Regular expressions over tensor names, safe for whatever a recipe holds: no recursion, and time
// that grows with pattern times name (Thompson's construction). They are what such names need of
// ECMAScript's: literal characters, . [a-z] [^a-z] \d \w \s \D \W \S, groups ( ) and (?: ), | * + ?
// ^ $, and a backslash before any other sign for the sign itself.
#pragma once

#include <bitset>
#include <string>
#include <string_view>
#include <vector>

namespace sala {

class NamePattern {
 public:
  // Throws std::runtime_error: what is wrong, and at which character.
  explicit NamePattern(const std::string& text);

  bool found_in(std::string_view name) const;  // anywhere in it

 private:
  friend class NamePatternParser;
  using Characters = std::bitset<256>;

  // A state is left by one character of a set, or freely (under its condition) to up to two others.
  struct State {
    enum class Condition { kNone, kAtBegin, kAtEnd };
    int set = -1;  // of sets_; -1: left freely
    Condition condition = Condition::kNone;
    int next[2] = {-1, -1};
  };

  void enter(int state, bool at_begin, bool at_end, std::vector<bool>& reached,
             std::vector<int>& states) const;

  std::vector<Characters> sets_;
  std::vector<State> states_;
  int first_ = -1, last_ = -1;  // matched when `last_` is reached
};

}  // namespace sala
