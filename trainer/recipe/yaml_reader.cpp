// yaml-cpp's nodes into our own tree, once, with places kept.
#include "trainer/recipe/yaml_reader.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <tuple>
#include <unordered_set>

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include "trainer/recipe/field_values.h"
#include "trainer/recipe/yaml_errors.h"

namespace sala {

namespace {

constexpr int kMaxDepth = 32;  // deeper than any recipe; stops an anchor that contains itself
constexpr int64_t kMaxNodes = 100'000;  // of the expanded tree: an alias costs what it stands for
constexpr size_t kMaxBytes = size_t{1} << 20;

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
    if (++num_nodes_ > kMaxNodes) {
      throw std::runtime_error(
          fmt::format("{}: more than {} values, every alias counted as what it stands for: name "
                      "many files by a "
                      "pattern, and look for aliases of aliases",
                      out.place.text(), kMaxNodes));
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
      if (std::tie(out.place.line, out.place.column) > std::tie(last_.line, last_.column)) {
        last_ = out.place;
      }
    }
    return out;
  }

  // Of the value that comes last in the text.
  const YamlPlace& last_scalar() const { return last_; }

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
    std::unordered_set<std::string> keys;
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
      if (!keys.insert(key).second) {
        complain(where, fmt::format("{}: key given twice (first in line {}); keep one", shown(key),
                                    first_line(out, key)));
        continue;
      }
      out.members.push_back({key, where, build(member.second, depth + 1)});
    }
    for (YamlNode& base : merged) merge(base, keys, out);
  }

  void merge(YamlNode& base, std::unordered_set<std::string>& keys, YamlNode& out) {
    if (base.kind == YamlNode::Kind::kList) {
      for (YamlNode& item : base.items) merge(item, keys, out);
    } else if (base.kind != YamlNode::Kind::kMap) {
      complain(base.place, "<< takes an alias of a mapping, not " + what_it_is(base));
    }
    for (YamlMember& member : base.members) {
      if (keys.insert(member.key).second) out.members.push_back(std::move(member));
    }
  }

  static int first_line(const YamlNode& node, const std::string& key) {
    for (const YamlMember& member : node.members) {
      if (member.key == key) return member.place.line;
    }
    return 0;
  }

  std::string file_, origin_;
  int64_t num_nodes_ = 0;
  YamlPlace last_;
  std::vector<YamlProblem>* problems_;
};

std::string read_file(const std::string& path) {
  std::error_code none;
  const std::filesystem::file_status status = std::filesystem::status(path, none);
  const bool folder = std::filesystem::is_directory(status);
  if (folder || std::filesystem::is_fifo(status)) {  // whose other end would be waited for
    throw std::runtime_error(fmt::format("{}: expected a recipe (a YAML file), but it is a {}",
                                         path, folder ? "folder" : "FIFO"));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');  // a device or another kind of file may have no end
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in.eof() && !in) {
    throw std::runtime_error(
        fmt::format("{}: cannot read the recipe: {}", path, std::strerror(errno)));
  }
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMaxBytes) {
    throw std::runtime_error(
        fmt::format("{}: expected a recipe (YAML, some kilobytes), but it has more than {} bytes",
                    path, kMaxBytes));
  }
  return text;
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
      return "'" + shown(node.scalar) + "'";
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
    TreeBuilder builder(path, "", &problems);
    YamlNode root = builder.build(documents[0]);
    if (is_open_quote(text, builder.last_scalar())) {
      throw std::runtime_error(builder.last_scalar().text() +
                               ": not valid YAML: this quote is opened and not closed");
    }
    return root;
  } catch (const YAML::Exception& error) {
    YamlPlace place{path, error.mark.line + 1, error.mark.column + 1};
    const std::string message = explain_yaml_error(text, error.msg, place);
    throw std::runtime_error(place.text() + ": " + message);
  }
}

YamlNode read_yaml_value(const std::string& text, const std::string& origin) {
  try {
    return TreeBuilder("", origin, nullptr).build(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    YamlPlace place{origin, 1, error.mark.column + 1};
    throw std::runtime_error(fmt::format("{}: '{}': {}", origin, shown(text),
                                         explain_yaml_error(text, error.msg, place)));
  }
}

}  // namespace sala
