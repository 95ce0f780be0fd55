// `--set key.path=value`: a value written into the tree before the recipe reads it, so that it goes
// through the same checks as one from the file.
#include <algorithm>
#include <charconv>
#include <optional>
#include <stdexcept>

#include <fmt/format.h>

#include "trainer/recipe/field_values.h"
#include "trainer/recipe/yaml_reader.h"

namespace sala {

namespace {

// "stages[2].distill.lr" -> stages, 2, distill, lr
std::vector<std::string> split_path(const std::string& path) {
  std::vector<std::string> parts(1);
  for (const char c : path) {
    if (c == '.' || c == '[') {
      parts.emplace_back();
    } else if (c != ']') {
      parts.back() += c;
    }
  }
  return parts;
}

std::optional<size_t> as_index(const std::string& part) {
  size_t index = 0;
  const char* end = part.data() + part.size();
  const auto [stop, error] = std::from_chars(part.data(), end, index);
  if (error != std::errc() || stop != end) return std::nullopt;
  return index;
}

// The stage's own name where it has one, its type otherwise.
bool stage_is_called(const YamlNode& stage, const std::string& name) {
  if (stage.members.size() != 1) return false;
  const YamlNode* own = stage.members[0].value.find("name");
  return (own != nullptr ? own->scalar : stage.members[0].key) == name;
}

class Override {
 public:
  Override(std::string key, YamlNode value)
      : origin_("--set " + shown(key)), parts_(split_path(key)), value_(std::move(value)) {}

  void apply(YamlNode& root) {
    constexpr size_t kMostParts = 16;  // more than any key has
    if (parts_.size() > kMostParts) fail("no key lies that deep");
    YamlNode* node = &root;
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (parts_[i].empty()) fail("an empty name in the key");
      node = node->kind == YamlNode::Kind::kList ? into_list(*node, i) : into_map(*node, i);
    }
    *node = std::move(value_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw std::runtime_error(origin_ + ": " + message);
  }

  // What part `i` is looked for in.
  std::string before(size_t i) const { return i == 0 ? "the recipe" : shown(parts_[i - 1]); }

  YamlNode* into_map(YamlNode& node, size_t i) {
    if (node.kind == YamlNode::Kind::kScalar) {
      fail(fmt::format("'{}' cannot be inside of {}, which is a single value", shown(parts_[i]),
                       before(i)));
    }
    if (node.kind == YamlNode::Kind::kNull) {
      node.kind = YamlNode::Kind::kMap;
      node.place = {origin_, 0, 0};
    }
    if (YamlNode* found = node.find(parts_[i])) return found;
    YamlNode empty;
    empty.place = {origin_, 0, 0};
    node.members.push_back({parts_[i], empty.place, empty});
    return &node.members.back().value;
  }

  YamlNode* into_list(YamlNode& list, size_t i) {
    const bool stages = i == 1 && parts_[0] == "stages";
    YamlNode* item = nullptr;
    if (const auto index = as_index(parts_[i])) {
      if (*index >= list.items.size()) {
        fail(fmt::format("{}[{}] does not exist: there are {}", before(i), *index,
                         list.items.size()));
      }
      item = &list.items[*index];
    } else if (stages) {
      item = stage_by_name(list, parts_[i]);
    } else {
      fail(fmt::format("{0} is a list: name its elements by number, {0}[0]", before(i)));
    }
    // The stage's type may be left out of the path.
    const bool has_type = item->members.size() == 1;
    if (stages && has_type && (i + 1 == parts_.size() || parts_[i + 1] != item->members[0].key)) {
      item = &item->members[0].value;
    }
    return item;
  }

  YamlNode* stage_by_name(YamlNode& list, const std::string& name) const {
    YamlNode* found = nullptr;
    std::string names;
    for (YamlNode& stage : list.items) {
      if (stage.members.size() == 1) {
        const YamlNode* own = stage.members[0].value.find("name");
        names += (names.empty() ? "" : ", ") + (own ? own->scalar : stage.members[0].key);
      }
      if (!stage_is_called(stage, name)) continue;
      if (found != nullptr) fail(fmt::format("several stages are called '{}'", shown(name)));
      found = &stage;
    }
    if (found == nullptr) {
      fail(fmt::format("no stage is called '{}'; there are: {}", shown(name), shown(names)));
    }
    return found;
  }

  std::string origin_;
  std::vector<std::string> parts_;
  YamlNode value_;
};

}  // namespace

void apply_override(YamlNode& root, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw std::runtime_error("--set " + shown(assignment) +
                             ": expected key=value, such as run.seed=7");
  }
  const std::string key = assignment.substr(0, equals);
  YamlNode value = read_yaml_value(assignment.substr(equals + 1), "--set " + key);
  Override(key, std::move(value)).apply(root);
}

}  // namespace sala
