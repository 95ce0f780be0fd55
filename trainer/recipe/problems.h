// Every problem of one recipe with its place, so that a person sees all of them at once: those of
// reading (field_reader.h) and those that the checks of recipe, stages, files and machine find
// afterwards. A check whose values could not be read is silent: it would only add noise.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "trainer/recipe/fields.h"
#include "trainer/recipe/yaml_reader.h"

namespace sala {

class RecipeProblems : public Problems {
 public:
  // `key` gets the place of the nearest key on its path that the file has.
  void add(const std::string& key, const std::string& message) override;
  bool knows(const std::string& key) const override;
  bool clean(const std::string& key) const override;
  // The same for a value that cannot be read.
  void add_unread(const std::string& key, const std::string& message);
  void mark_unread(const std::string& key) { unread_.insert(key); }
  void add_at(const YamlPlace& place, const std::string& key, const std::string& message);
  void add_line(const std::string& line) { add_at({line, 0, 0}, "", ""); }  // has its place already
  void remember(const std::string& key, const YamlPlace& place) { places_[key] = place; }

  bool empty() const { return problems_.empty(); }
  std::vector<std::string> lines() const;  // one each, in the file's order; the first fifty
  std::string text() const;                // the same as one text
  void raise() const;                      // throws std::runtime_error with it, when there are any

 private:
  struct Problem {
    YamlPlace place;
    std::string key, message;
  };
  std::map<std::string, YamlPlace> places_;
  std::set<std::string> unread_;
  std::vector<Problem> problems_;
};

}  // namespace sala
