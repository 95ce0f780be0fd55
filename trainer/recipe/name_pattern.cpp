// Pattern text -> states, and all states that a name can be in at once.
#include "trainer/recipe/name_pattern.h"

#include <cctype>
#include <stdexcept>

#include <fmt/format.h>

namespace sala {

// Reads the text once, from left to right; open groups are on a stack of its own.
class NamePatternParser {
 public:
  NamePatternParser(const std::string& text, NamePattern& pattern)
      : text_(text), pattern_(pattern) {}

  void parse() {
    groups_.emplace_back();
    while (at_ < text_.size()) read_item();
    if (groups_.size() > 1) fail("a ( is not closed", groups_.back().opened_at);
    const Part all = close_group();
    pattern_.first_ = all.in;
    pattern_.last_ = all.out;
  }

 private:
  using State = NamePattern::State;
  struct Part {
    int in = -1, out = -1;  // states; `out` leads nowhere yet
  };
  struct Group {
    size_t opened_at = 0;
    std::vector<Part> alternatives;
    Part sequence;  // of the alternative that is being read; none when in = -1
    Part item;      // its last element, which a quantifier takes
  };

  [[noreturn]] void fail(const std::string& what, size_t at) const {
    throw std::runtime_error(fmt::format("{} at character {}", what, at + 1));
  }

  int add(State state = {}) {
    pattern_.states_.push_back(state);
    return static_cast<int>(pattern_.states_.size()) - 1;
  }
  void connect(int from, int to) {
    int* next = pattern_.states_[static_cast<size_t>(from)].next;
    next[next[0] < 0 ? 0 : 1] = to;
  }
  // Left by one of `set`, or freely under a condition.
  Part atom(State state) {
    const Part part{add(state), add()};
    connect(part.in, part.out);
    return part;
  }
  Part one_of(const NamePattern::Characters& set) {
    pattern_.sets_.push_back(set);
    return atom({static_cast<int>(pattern_.sets_.size()) - 1, State::Condition::kNone, {-1, -1}});
  }

  // The item before becomes part of the sequence; `part` is the next one.
  void push(Part part) {
    flush();
    groups_.back().item = part;
  }
  void flush() {
    Group& group = groups_.back();
    if (group.item.in < 0) return;
    if (group.sequence.in < 0) {
      group.sequence = group.item;
    } else {
      connect(group.sequence.out, group.item.in);
      group.sequence.out = group.item.out;
    }
    group.item = {};
  }
  void end_alternative() {
    flush();
    Group& group = groups_.back();
    if (group.sequence.in < 0) {  // matches nothing at all, as in (a|)
      const int empty = add();
      group.sequence = {empty, empty};
    }
    group.alternatives.push_back(group.sequence);
    group.sequence = {};
  }
  Part close_group() {
    end_alternative();
    Part all = groups_.back().alternatives[0];
    for (size_t i = 1; i < groups_.back().alternatives.size(); ++i) {
      const Part other = groups_.back().alternatives[i];
      const Part both{add(), add()};
      connect(both.in, all.in);
      connect(both.in, other.in);
      connect(all.out, both.out);
      connect(other.out, both.out);
      all = both;
    }
    groups_.pop_back();
    return all;
  }

  void repeat(char quantifier) {
    Group& group = groups_.back();
    if (group.item.in < 0) fail(fmt::format("nothing to repeat before {}", quantifier), at_);
    const Part inner = group.item;
    const Part outer{add(), add()};
    connect(outer.in, inner.in);
    if (quantifier != '+') connect(outer.in, outer.out);
    connect(inner.out, outer.out);
    if (quantifier != '?') connect(inner.out, inner.in);
    group.item = outer;
  }

  void read_item() {
    const char c = text_[at_];
    switch (c) {
      case '(':
        return open_group();
      case ')':
        if (groups_.size() == 1) fail("a ) closes nothing", at_);
        push(close_group());
        break;
      case '|':
        end_alternative();
        break;
      case '*':
      case '+':
      case '?':
        repeat(c);
        break;
      case '{':
      case '}':
        fail("{ } (counted repetition) is not read here: write \\{ for the sign itself,", at_);
      case '[':
        return push(one_of(read_class()));
      case '^':
        push(atom({-1, State::Condition::kAtBegin, {-1, -1}}));
        break;
      case '$':
        push(atom({-1, State::Condition::kAtEnd, {-1, -1}}));
        break;
      case '.':
        push(one_of(NamePattern::Characters().set()));
        break;
      case '\\':
        return push(one_of(read_escape()));
      default:
        push(one_of(single(c)));
    }
    ++at_;
  }

  void open_group() {
    const size_t opened_at = at_++;
    if (at_ < text_.size() && text_[at_] == '?') {
      if (text_.compare(at_, 2, "?:") != 0) fail("(? is only read as (?:", opened_at);
      at_ += 2;
    }
    groups_.emplace_back();
    groups_.back().opened_at = opened_at;
  }

  static NamePattern::Characters single(char c) {
    return NamePattern::Characters().set(static_cast<unsigned char>(c));
  }

  NamePattern::Characters read_escape() {
    const size_t begin = at_++;
    if (at_ == text_.size()) fail("a \\ without the sign that it stands before", begin);
    const char c = text_[at_++];
    NamePattern::Characters set;
    const auto lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (lower == 'd' || lower == 'w' || lower == 's') {
      for (int i = 0; i < 128; ++i) {
        const bool in = lower == 'd'   ? std::isdigit(i) != 0
                        : lower == 's' ? std::isspace(i) != 0
                                       : std::isalnum(i) != 0 || i == '_';
        set.set(static_cast<size_t>(i), in);
      }
      return lower == c ? set : ~set;
    }
    if (std::isalnum(static_cast<unsigned char>(c)))
      fail(fmt::format("\\{} is not read here", c), begin);
    return single(c);
  }

  NamePattern::Characters read_class() {
    const size_t begin = at_++;
    const bool negated = at_ < text_.size() && text_[at_] == '^';
    if (negated) ++at_;
    NamePattern::Characters set;
    while (at_ < text_.size() && text_[at_] != ']') {
      if (text_[at_] == '[') fail("[ inside of [ ] is not read here: write \\[,", at_);
      if (text_[at_] == '\\') {
        set |= read_escape();
        continue;
      }
      const auto from = static_cast<unsigned char>(text_[at_++]);
      auto to = from;
      if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
        to = static_cast<unsigned char>(text_[at_ + 1]);
        if (to < from || to == '\\') fail("a range whose end comes before its begin", at_ - 1);
        at_ += 2;
      }
      for (unsigned c = from; c <= to; ++c) set.set(c);
    }
    if (at_ == text_.size()) fail("a [ is not closed", begin);
    ++at_;
    return negated ? ~set : set;
  }

  const std::string& text_;
  NamePattern& pattern_;
  size_t at_ = 0;
  std::vector<Group> groups_;
};

NamePattern::NamePattern(const std::string& text) { NamePatternParser(text, *this).parse(); }

// Adds `state` and all that can be reached from it without a character.
void NamePattern::enter(int state, bool at_begin, bool at_end, std::vector<bool>& reached,
                        std::vector<int>& states) const {
  std::vector<int> waiting{state};
  while (!waiting.empty()) {
    const int s = waiting.back();
    waiting.pop_back();
    if (s < 0 || reached[static_cast<size_t>(s)]) continue;
    reached[static_cast<size_t>(s)] = true;
    const State& here = states_[static_cast<size_t>(s)];
    if (here.set >= 0) {
      states.push_back(s);
      continue;
    }
    if (here.condition == State::Condition::kAtBegin && !at_begin) continue;
    if (here.condition == State::Condition::kAtEnd && !at_end) continue;
    waiting.push_back(here.next[0]);
    waiting.push_back(here.next[1]);
  }
}

bool NamePattern::found_in(std::string_view name) const {
  std::vector<int> states;
  for (size_t at = 0;; ++at) {
    const bool at_end = at == name.size();
    // What the characters so far led to, and a match that begins here.
    std::vector<bool> reached(states_.size());
    std::vector<int> now;
    for (const int state : states) enter(state, at == 0, at_end, reached, now);
    enter(first_, at == 0, at_end, reached, now);
    if (reached[static_cast<size_t>(last_)]) return true;
    if (at_end) return false;
    states.clear();
    for (const int state : now) {
      const State& here = states_[static_cast<size_t>(state)];
      if (sets_[static_cast<size_t>(here.set)].test(static_cast<unsigned char>(name[at]))) {
        states.push_back(here.next[0]);
      }
    }
  }
}

}  // namespace sala
