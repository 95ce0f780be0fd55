// The recipe as text: resolved YAML that reads back to the same recipe, and the list of every key.
#include <algorithm>

#include <fmt/format.h>

#include "trainer/recipe/field_values.h"
#include "trainer/recipe/recipe.h"

namespace sala {

namespace {

template <class T, class Format>
std::string flow_list(const std::vector<T>& values, const Format& format) {
  std::vector<std::string> parts;
  for (const T& value : values) parts.push_back(format(value));
  return fmt::format("[{}]", fmt::join(parts, ", "));
}

std::string range_text(CountRange range) {
  return fmt::format(", {} to {}", range.least, format_count(range.most));
}

std::string flow_map(const std::map<std::string, double>& weights) {
  std::vector<std::string> parts;
  for (const auto& [name, weight] : weights) {
    parts.push_back(format_text(name) + ": " + format_number(weight));
  }
  return fmt::format("{{{}}}", fmt::join(parts, ", "));
}

// A visitor that sees every key with its value as YAML text; what becomes of it is up to leaf().
class TextFields : public Fields {
 public:
  void count(const char* key, int64_t& value, Need need, const char* help,
             CountRange range) override {
    leaf(key, "count" + range_text(range), format_count(value), need, help);
  }
  void number(const char* key, double& value, Need need, const char* help) override {
    leaf(key, "number", format_number(value), need, help);
  }
  void flag(const char* key, bool& value, Need need, const char* help) override {
    leaf(key, "flag", value ? "true" : "false", need, help);
  }
  void text(const char* key, std::string& value, Need need, const char* help) override {
    leaf(key, "text", format_text(value), need, help);
  }
  void path(const char* key, std::string& value, Need need, const char* help) override {
    leaf(key, "path", format_text(value), need, help);
  }
  void choice(const char* key, std::string& value, std::vector<std::string> choices, Need need,
              const char* help) override {
    leaf(key, fmt::format("choice: {}", fmt::join(choices, ", ")), format_text(value), need, help);
  }
  void counts(const char* key, std::vector<int64_t>& value, Need need, const char* help,
              CountRange range) override {
    leaf(key, "counts" + range_text(range), flow_list(value, format_count), need, help);
  }
  void numbers(const char* key, std::vector<double>& value, Need need, const char* help) override {
    leaf(key, "numbers", flow_list(value, format_number), need, help);
  }
  void texts(const char* key, std::vector<std::string>& value, Need need,
             const char* help) override {
    leaf(key, "texts", flow_list(value, format_text), need, help);
  }
  void paths(const char* key, std::vector<std::string>& value, Need need,
             const char* help) override {
    leaf(key, "paths", flow_list(value, format_text), need, help);
  }
  void weights(const char* key, std::map<std::string, double>& value, Need need,
               const char* help) override {
    leaf(key, "weights", flow_map(value), need, help);
  }

 protected:
  virtual void leaf(const char* key, const std::string& kind, const std::string& value, Need need,
                    const char* help) = 0;
};

class Printer : public TextFields {
 public:
  std::string out;

  void leaf(const char* key, const std::string&, const std::string& value, Need,
            const char*) override {
    start(key) += " " + value + "\n";
  }
  void section(const char* key, Need, const char*,
               const std::function<void(Fields&)>& describe) override {
    start(key) += "\n";
    indented(1, [&] { describe(*this); });
  }
  void named_sections(const char* key, Need, const char*, const std::vector<std::string>& names,
                      const std::function<void(const std::string&, Fields&)>& describe) override {
    start(key) += names.empty() ? " {}\n" : "\n";
    for (const std::string& name : names) {
      indented(1, [&] {
        start(format_text(name)) += "\n";
        indented(1, [&] { describe(name, *this); });
      });
    }
  }
  void list(const char* key, Need, const char*, size_t size,
            const std::function<void(size_t, Fields&)>& describe) override {
    start(key) += size == 0 ? " []\n" : "\n";
    for (size_t i = 0; i < size; ++i) {
      item_ = true;
      indented(2, [&] { describe(i, *this); });
    }
  }
  void variants(const char* key, Need, const char*, const std::vector<std::string>&,
                const std::vector<std::string>& current,
                const std::function<void(size_t, const std::string&, Fields&)>& describe) override {
    start(key) += current.empty() ? " []\n" : "\n";
    for (size_t i = 0; i < current.size(); ++i) {
      indented(2, [&] {
        item_ = true;
        start(current[i]) += "\n";
        indented(1, [&] { describe(i, current[i], *this); });
      });
    }
  }

 private:
  // Begins a line with its indentation, or the dash of a list's element, and its key.
  std::string& start(const std::string& key) {
    const size_t width = 2 * depth_;
    out += item_ ? std::string(width - 2, ' ') + "- " : std::string(width, ' ');
    item_ = false;
    return out += key + ":";
  }
  void indented(size_t levels, const std::function<void()>& body) {
    depth_ += levels;
    body();
    depth_ -= levels;
  }

  size_t depth_ = 0;
  bool item_ = false;
};

// Every value that there is, under its path ("stages[2].distill.tokens"), or every key that there
// can be ("stages[].distill.tokens", sections among them).
class Lister : public TextFields {
 public:
  enum class Of { kValues, kKeys };
  explicit Lister(Of of) : keys_(of == Of::kKeys) {}

  std::vector<KeyDoc> entries;  // of values: each as the fallback

  void leaf(const char* key, const std::string& kind, const std::string& value, Need need,
            const char* help) override {
    add(key, kind, value, need, help);
  }
  void section(const char* key, Need need, const char* help,
               const std::function<void(Fields&)>& describe) override {
    group(key, "section", need, help);
    inside(key, [&] { describe(*this); });
  }
  void named_sections(const char* key, Need need, const char* help,
                      const std::vector<std::string>& names,
                      const std::function<void(const std::string&, Fields&)>& describe) override {
    group(key, "sections by name", need, help);
    for (const std::string& name : keys_ ? std::vector<std::string>{"NAME"} : names) {
      inside(fmt::format("{}.{}", key, name), [&] { describe(name, *this); });
    }
  }
  void list(const char* key, Need need, const char* help, size_t size,
            const std::function<void(size_t, Fields&)>& describe) override {
    group(key, "list of sections", need, help);
    for (size_t i = 0; i < (keys_ ? 1 : size); ++i) {
      inside(fmt::format("{}[{}]", key, index(i)), [&] { describe(i, *this); });
    }
  }
  void variants(const char* key, Need need, const char* help, const std::vector<std::string>& types,
                const std::vector<std::string>& current,
                const std::function<void(size_t, const std::string&, Fields&)>& describe) override {
    group(key, "list of stages", need, help);
    const std::vector<std::string>& there = keys_ ? types : current;
    for (size_t i = 0; i < there.size(); ++i) {
      inside(fmt::format("{}[{}].{}", key, index(i), there[i]),
             [&] { describe(i, there[i], *this); });
    }
  }

 private:
  std::string index(size_t i) const { return keys_ ? "" : std::to_string(i); }
  void group(const char* key, const char* kind, Need need, const char* help) {
    if (keys_) add(key, kind, "", need, help);
  }
  void add(const char* key, const std::string& kind, const std::string& value, Need need,
           const char* help) {
    const bool required = keys_ && need == Need::kRequired;
    entries.push_back({path_ + key, kind, required ? "required" : value, help});
  }
  void inside(const std::string& name, const std::function<void()>& body) {
    const std::string outer = path_;
    path_ += name + ".";
    body();
    path_ = outer;
  }

  const bool keys_;
  std::string path_;
};

// The table a key belongs to: "" for the top, "run", "stages[].align".
std::string table_of(const std::string& path) {
  const size_t dot = path.find('.');
  if (dot == std::string::npos) return "";
  if (path.compare(0, dot, "stages[]") != 0) return path.substr(0, dot);
  return path.substr(0, path.find('.', dot + 1));
}

}  // namespace

std::string resolved_yaml(Recipe& recipe) {
  Printer printer;
  recipe.describe(printer);
  return printer.out;
}

std::vector<std::pair<std::string, std::string>> recipe_values(Recipe& recipe) {
  Lister lister(Lister::Of::kValues);
  recipe.describe(lister);
  std::vector<std::pair<std::string, std::string>> values;
  for (const KeyDoc& entry : lister.entries) values.emplace_back(entry.path, entry.fallback);
  return values;
}

std::vector<KeyDoc> recipe_keys() {
  Recipe scratch;
  Lister lister(Lister::Of::kKeys);
  scratch.describe(lister);
  return lister.entries;
}

std::string recipe_keys_markdown() {
  // Keys of one table need not be neighbours: those at the top come between their sections.
  std::vector<std::pair<std::string, std::string>> tables;
  for (const KeyDoc& key : recipe_keys()) {
    const std::string name = table_of(key.path);
    auto table = std::find_if(tables.begin(), tables.end(),
                              [&](const auto& entry) { return entry.first == name; });
    if (table == tables.end()) table = tables.insert(tables.end(), {name, ""});
    const std::string path = name.empty() ? key.path : key.path.substr(name.size() + 1);
    const bool bare = key.fallback.empty() || key.fallback == "required";
    const std::string fallback = bare ? key.fallback : "`" + key.fallback + "`";
    table->second += fmt::format("| `{}` | {} | {} | {} |\n", path, key.kind, fallback, key.help);
  }
  std::string out;
  for (const auto& [name, rows] : tables) {
    const std::string title = name.empty() ? "At the top" : "`" + name + "`";
    out += fmt::format("### {}\n\n| key | kind | default | meaning |\n|---|---|---|---|\n{}\n",
                       title, rows);
  }
  out.pop_back();  // no blank line after the last table
  return out;
}

}  // namespace sala
