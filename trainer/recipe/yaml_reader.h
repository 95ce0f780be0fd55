// The only door to yaml-cpp: a YAML file becomes a plain tree whose nodes know where they are from.
// Anchors and aliases are expanded; `<<: *anchor` adds the keys that the mapping lacks. How large a
// file and its tree may be is limited, so that no text takes long or much memory.
#pragma once

#include <string>
#include <vector>

namespace sala {

// "recipe.yaml:12:5", or "--set stages.distill.lr" for values given on the command line.
struct YamlPlace {
  std::string file;  // the file, or the whole "--set key"
  int line = 0;      // from 1; 0 = the place is `file` as it stands
  int column = 0;
  std::string text() const;
};

struct YamlMember;

struct YamlNode {
  enum class Kind { kNull, kScalar, kMap, kList };
  Kind kind = Kind::kNull;
  YamlPlace place;
  std::string scalar;
  std::vector<YamlMember> members;  // kMap, in file order
  std::vector<YamlNode> items;      // kList

  YamlNode* find(const std::string& key);
  const YamlNode* find(const std::string& key) const;
};

struct YamlMember {
  std::string key;
  YamlPlace place;  // of the key
  YamlNode value;
};

// What a node is, for error messages: "a mapping", "a list", "'text'", "nothing".
std::string what_it_is(const YamlNode& node);

// A complaint about the text itself: duplicate keys, keys that are no plain text.
struct YamlProblem {
  YamlPlace place;
  std::string message;
};

// Throws std::runtime_error ("file:line:column: message") where the text is no YAML, and
// "file: message" when the file cannot be read.
YamlNode read_yaml_file(const std::string& path, std::vector<YamlProblem>& problems);
// The value of an override: a scalar or flow YAML ("[0, 7]"). All places are `origin`.
YamlNode read_yaml_value(const std::string& text, const std::string& origin);

// Sets the value at a key path such as "run.seed", "stages.distill.lr" (stage by name or type),
// "stages[2].distill.lr" or "stages.2.rules[0].freeze"; mappings on the way are made. Throws
// std::runtime_error ("--set key: message") when the path cannot exist.
void apply_override(YamlNode& root, const std::string& assignment);

}  // namespace sala
