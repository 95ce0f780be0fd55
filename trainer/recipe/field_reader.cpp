// The visitor that fills structs from a YAML mapping and leaves no key unexplained.
#include "trainer/recipe/field_reader.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "trainer/recipe/field_values.h"

namespace sala {

namespace {

using Kind = YamlNode::Kind;

std::string join(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

class FieldReader : public Fields {
 public:
  FieldReader(const YamlNode& node, std::string path, RecipeProblems& problems)
      : node_(node), path_(std::move(path)), problems_(problems) {}

  void count(const char* key, int64_t& value, Need need, const char*, CountRange range) override {
    if (const YamlNode* node = take(key, need)) read_count(*node, join(path_, key), range, value);
  }
  void number(const char* key, double& value, Need need, const char*) override {
    if (const YamlNode* node = take(key, need)) read_number(*node, join(path_, key), value);
  }
  void flag(const char* key, bool& value, Need need, const char*) override {
    const YamlNode* node = take(key, need);
    std::string text;
    if (node == nullptr || !read_scalar(*node, join(path_, key), "true or false", text)) return;
    if (text == "true" || text == "false") {
      value = text == "true";
    } else {
      problems_.add_unread(join(path_, key),
                           fmt::format("expected true or false, but is '{}'", shown(text)));
    }
  }
  void text(const char* key, std::string& value, Need need, const char*) override {
    const YamlNode* node = take(key, need);
    if (node == nullptr || !read_scalar(*node, join(path_, key), "text", value)) return;
    if (value.empty() && need == Need::kRequired) {
      problems_.add_unread(join(path_, key), "is empty");
    }
  }
  void path(const char* key, std::string& value, Need need, const char* help) override {
    std::string written = value;
    text(key, written, need, help);
    read_path(written, join(path_, key), value);
  }
  void choice(const char* key, std::string& value, std::vector<std::string> choices, Need need,
              const char*) override {
    const YamlNode* node = take(key, need);
    std::string text;
    if (node == nullptr) return;
    const std::string what = fmt::format("one of {}", fmt::join(choices, ", "));
    if (!read_scalar(*node, join(path_, key), what.c_str(), text)) return;
    if (std::find(choices.begin(), choices.end(), text) != choices.end()) {
      value = text;
      return;
    }
    const std::string near = nearest_word(text, choices);
    const std::string hint = near.empty() ? "" : "; did you mean '" + near + "'?";
    problems_.add_unread(join(path_, key),
                         fmt::format("expected {}, but is '{}'{}", what, shown(text), hint));
  }
  void counts(const char* key, std::vector<int64_t>& value, Need need, const char*,
              CountRange range) override {
    read_list(key, need, value, [&](const YamlNode& node, const std::string& path, int64_t& x) {
      read_count(node, path, range, x);
    });
  }
  void numbers(const char* key, std::vector<double>& value, Need need, const char*) override {
    read_list(key, need, value, [this](const YamlNode& node, const std::string& path, double& x) {
      read_number(node, path, x);
    });
  }
  void texts(const char* key, std::vector<std::string>& value, Need need, const char*) override {
    read_list(key, need, value,
              [this](const YamlNode& node, const std::string& path, std::string& x) {
                read_scalar(node, path, "text", x);
              });
  }
  void paths(const char* key, std::vector<std::string>& value, Need need, const char*) override {
    read_list(key, need, value,
              [this](const YamlNode& node, const std::string& path, std::string& x) {
                std::string written;
                if (read_scalar(node, path, "a path", written)) read_path(written, path, x);
              });
  }
  void weights(const char* key, std::map<std::string, double>& value, Need need,
               const char*) override {
    const YamlNode* node = take(key, need);
    if (node == nullptr || !expect(*node, Kind::kMap, join(path_, key), "{name: weight}")) return;
    value.clear();
    for (const YamlMember& member : node->members) {
      const std::string path = join(join(path_, key), member.key);
      problems_.remember(path, member.value.place);
      read_number(member.value, path, value[member.key]);
    }
  }
  void section(const char* key, Need need, const char*,
               const std::function<void(Fields&)>& describe) override {
    if (const YamlNode* node = take(key, need)) {
      read_fields(*node, join(path_, key), problems_, describe);
    }
  }
  void named_sections(const char* key, Need need, const char*, const std::vector<std::string>&,
                      const std::function<void(const std::string&, Fields&)>& describe) override {
    const YamlNode* node = take(key, need);
    if (node == nullptr || !expect(*node, Kind::kMap, join(path_, key), "a mapping")) return;
    for (const YamlMember& member : node->members) {
      const std::string path = join(join(path_, key), member.key);
      problems_.remember(path, member.place);
      read_fields(member.value, path, problems_,
                  [&](Fields& fields) { describe(member.key, fields); });
    }
  }
  void list(const char* key, Need need, const char*, size_t,
            const std::function<void(size_t, Fields&)>& describe) override {
    const YamlNode* node = take(key, need);
    if (node == nullptr || !expect(*node, Kind::kList, join(path_, key), "a list")) return;
    for (size_t i = 0; i < node->items.size(); ++i) {
      const std::string path = fmt::format("{}[{}]", join(path_, key), i);
      problems_.remember(path, node->items[i].place);
      read_fields(node->items[i], path, problems_, [&](Fields& fields) { describe(i, fields); });
    }
  }
  void variants(const char* key, Need need, const char*, const std::vector<std::string>& types,
                const std::vector<std::string>&,
                const std::function<void(size_t, const std::string&, Fields&)>& describe) override {
    const YamlNode* node = take(key, need);
    if (node == nullptr || !expect(*node, Kind::kList, join(path_, key), "a list")) return;
    for (size_t i = 0; i < node->items.size(); ++i) {
      const YamlNode& item = node->items[i];
      const std::string path = fmt::format("{}[{}]", join(path_, key), i);
      problems_.remember(path, item.place);
      if (item.kind != Kind::kMap || item.members.size() != 1) {
        problems_.add(path, fmt::format("expected '- type: {{options}}' with one type, but is {}{}",
                                        what_it_is(item), several_keys(item)));
        problems_.mark_unread(join(path_, key) + "[*]");
        continue;
      }
      const YamlMember& member = item.members[0];
      if (std::find(types.begin(), types.end(), member.key) == types.end()) {
        problems_.add_at(
            member.place, path,
            fmt::format("unknown type '{}'{}", shown(member.key), suggest(member.key, types)));
        problems_.mark_unread(join(path_, key) + "[*]");
        continue;
      }
      const std::string inner = join(path, member.key);
      problems_.remember(inner, member.place);
      // `- evaluate:` with nothing behind it is an element with all defaults.
      YamlNode options = member.value;
      if (options.kind == Kind::kNull) options.kind = Kind::kMap;
      read_fields(options, inner, problems_,
                  [&](Fields& fields) { describe(i, member.key, fields); });
    }
  }

  // Keys that nobody asked for, and required ones that are not there (unless an unknown key looks
  // like a misspelling of it: one line for one mistake).
  void finish() {
    std::vector<std::string> meant;
    for (const YamlMember& member : node_.members) {
      if (std::find(known_.begin(), known_.end(), member.key) != known_.end()) continue;
      meant.push_back(nearest_word(member.key, known_));
      problems_.add_at(member.place, join(path_, shown(member.key)),
                       "unknown key" + suggest(member.key, known_));
    }
    for (const std::string& key : missing_) {
      if (std::find(meant.begin(), meant.end(), key) == meant.end()) {
        problems_.add(join(path_, key), "missing: this key is required");
      }
      problems_.mark_unread(join(path_, key));
    }
  }

 private:
  static std::string several_keys(const YamlNode& item) {
    if (item.kind != Kind::kMap) return "";
    std::vector<std::string> keys;
    for (const YamlMember& member : item.members) keys.push_back(member.key);
    return fmt::format(" with {} keys ({}); indent the options below the type", keys.size(),
                       shown(fmt::format("{}", fmt::join(keys, ", "))));
  }

  const YamlNode* take(const char* key, Need need) {
    known_.emplace_back(key);
    const YamlNode* node = node_.find(key);
    if (node != nullptr) {
      problems_.remember(join(path_, key), node->place);
    } else if (need == Need::kRequired) {
      missing_.emplace_back(key);
    }
    return node;
  }

  bool expect(const YamlNode& node, Kind kind, const std::string& path, const char* what) {
    if (node.kind == kind) return true;
    problems_.add_unread(path, fmt::format("expected {}, but is {}", what, what_it_is(node)));
    return false;
  }

  bool read_scalar(const YamlNode& node, const std::string& path, const char* what,
                   std::string& value) {
    if (!expect(node, Kind::kScalar, path, what)) return false;
    if (node.scalar.size() > kMostText) {
      problems_.add_unread(path, fmt::format("expected {}, at most {} bytes, but is '{}'", what,
                                             kMostText, shown(node.scalar)));
      return false;
    }
    value = node.scalar;
    return true;
  }

  void read_count(const YamlNode& node, const std::string& path, CountRange range, int64_t& value) {
    std::string text, error;
    if (!read_scalar(node, path, "a whole number", text)) return;
    if (!parse_count(text, range, value, error)) problems_.add_unread(path, error);
  }

  void read_number(const YamlNode& node, const std::string& path, double& value) {
    std::string text, error;
    if (!read_scalar(node, path, "a number", text)) return;
    if (!parse_number(text, value, error)) problems_.add_unread(path, error);
  }

  void read_path(const std::string& written, const std::string& path, std::string& value) {
    std::string error;
    if (!parse_path(written, value, error)) problems_.add_unread(path, error);
  }

  template <class T, class Read>
  void read_list(const char* key, Need need, std::vector<T>& value, const Read& read) {
    const YamlNode* node = take(key, need);
    if (node == nullptr) return;
    const std::string path = join(path_, key);
    if (node->kind == Kind::kScalar) {  // a single value stands for a list of one
      value.assign(1, T{});
      read(*node, path, value[0]);
      return;
    }
    if (!expect(*node, Kind::kList, path, "a list")) return;
    value.assign(node->items.size(), T{});
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string item = fmt::format("{}[{}]", path, i);
      problems_.remember(item, node->items[i].place);
      read(node->items[i], item, value[i]);
    }
  }

  const YamlNode& node_;
  std::string path_;
  RecipeProblems& problems_;
  std::vector<std::string> known_, missing_;
};

}  // namespace

void read_fields(const YamlNode& node, const std::string& path, RecipeProblems& problems,
                 const std::function<void(Fields&)>& describe) {
  static const YamlNode kNoKeys{Kind::kMap, {}, {}, {}, {}};
  const bool readable = node.kind == Kind::kMap;
  if (!readable) problems.add_unread(path, "expected a mapping, but is " + what_it_is(node));
  // Described all the same: what is called by this path exists, whatever its options are.
  FieldReader reader(readable ? node : kNoKeys, path, problems);
  describe(reader);
  reader.finish();
}

}  // namespace sala
