// yaml-cpp's nodes into our own tree, once, with places kept.
#include "trainer/yaml_reader.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

namespace sala {

namespace {

constexpr int kMaxDepth = 32;  // deeper than any recipe; stops an anchor that contains itself

class TreeBuilder {
 public:
  TreeBuilder(std::string file, std::string origin, std::vector<YamlProblem>* problems)
      : file_(std::move(file)), origin_(std::move(origin)), problems_(problems) {}

  YamlNode build(const YAML::Node& node, int depth = 0) {
    YamlNode out;
    out.place = place(node.Mark());
    if (depth > kMaxDepth) {
      throw std::runtime_error(out.place.text() +
                               ": nested too deeply (does an anchor contain "
                               "itself?)");
    }
    if (node.IsMap()) {
      out.kind = YamlNode::Kind::kMap;
      build_map(node, depth, out);
    } else if (node.IsSequence()) {
      out.kind = YamlNode::Kind::kList;
      for (const YAML::Node& item : node) out.items.push_back(build(item, depth + 1));
    } else if (node.IsScalar()) {
      out.kind = YamlNode::Kind::kScalar;
      out.scalar = node.Scalar();
    }
    return out;
  }

 private:
  YamlPlace place(const YAML::Mark& mark) const {
    if (!origin_.empty()) return {origin_, 0, 0};
    return {file_, mark.line + 1, mark.column + 1};
  }

  void complain(const YamlPlace& where, const std::string& message) {
    if (problems_ != nullptr) problems_->push_back({where, message});
  }

  void build_map(const YAML::Node& node, int depth, YamlNode& out) {
    std::vector<YamlNode> merged;
    for (const auto& member : node) {
      const YamlPlace where = place(member.first.Mark());
      if (!member.first.IsScalar()) {
        complain(where, "a key must be plain text");
        continue;
      }
      const std::string& key = member.first.Scalar();
      if (key == "<<") {
        merged.push_back(build(member.second, depth + 1));
        continue;
      }
      if (const YamlMember* first = find_member(out, key)) {
        complain(where, fmt::format("{}: key given twice (first in line {}); keep one", key,
                                    first->place.line));
        continue;
      }
      out.members.push_back({key, where, build(member.second, depth + 1)});
    }
    for (const YamlNode& base : merged) merge(base, out);
  }

  void merge(const YamlNode& base, YamlNode& out) {
    if (base.kind == YamlNode::Kind::kList) {
      for (const YamlNode& item : base.items) merge(item, out);
    } else if (base.kind != YamlNode::Kind::kMap) {
      complain(base.place, "<< takes an alias of a mapping, not " + what_it_is(base));
    }
    for (const YamlMember& member : base.members) {
      if (find_member(out, member.key) == nullptr) out.members.push_back(member);
    }
  }

  static const YamlMember* find_member(const YamlNode& node, const std::string& key) {
    for (const YamlMember& member : node.members) {
      if (member.key == key) return &member;
    }
    return nullptr;
  }

  std::string file_, origin_;
  std::vector<YamlProblem>* problems_;
};

std::string read_file(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    throw std::runtime_error(path + ": expected a recipe (a YAML file), but it is a folder");
  }
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) {
    throw std::runtime_error(fmt::format("{}: cannot read the recipe: {}", path,
                                         errno != 0 ? std::strerror(errno) : "empty file"));
  }
  return text.str();
}

}  // namespace

std::string YamlPlace::text() const {
  return line == 0 ? file : fmt::format("{}:{}:{}", file, line, column);
}

YamlNode* YamlNode::find(const std::string& key) {
  for (YamlMember& member : members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

const YamlNode* YamlNode::find(const std::string& key) const {
  return const_cast<YamlNode*>(this)->find(key);
}

std::string what_it_is(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kMap:
      return "a mapping";
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kScalar:
      return "'" + node.scalar + "'";
    case YamlNode::Kind::kNull:
      break;
  }
  return "nothing";
}

YamlNode read_yaml_file(const std::string& path, std::vector<YamlProblem>& problems) {
  errno = 0;
  const std::string text = read_file(path);
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() > 1) {
      throw std::runtime_error(path + ": expected one YAML document, but '---' starts a second");
    }
    if (documents.empty()) return {};
    return TreeBuilder(path, "", &problems).build(documents[0]);
  } catch (const YAML::Exception& error) {
    const YamlPlace place{path, error.mark.line + 1, error.mark.column + 1};
    throw std::runtime_error(place.text() + ": not valid YAML: " + error.msg);
  }
}

YamlNode read_yaml_value(const std::string& text, const std::string& origin) {
  try {
    return TreeBuilder("", origin, nullptr).build(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    throw std::runtime_error(origin + ": '" + text + "' is not valid YAML: " + error.msg);
  }
}

}  // namespace sala
