// Every problem of one recipe with its place, so that a person sees all of them at once: those of
// reading (field_reader.h) and those that the checks of recipe and stages find afterwards.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/fields.h"
#include "trainer/yaml_reader.h"

namespace sala {

class RecipeProblems : public Problems {
 public:
  // `key` gets the place of the nearest key on its path that the file has.
  void add(const std::string& key, const std::string& message) override;
  void add_at(const YamlPlace& place, const std::string& key, const std::string& message);
  void add_line(const std::string& line) { add_at({line, 0, 0}, "", ""); }  // has its place already
  void remember(const std::string& key, const YamlPlace& place) { places_[key] = place; }

  bool empty() const { return problems_.empty(); }
  bool any_below(const std::string& key) const;  // a problem of this key or of one inside
  std::string text() const;                      // one line each, in the file's order

 private:
  struct Problem {
    YamlPlace place;
    std::string key, message;
  };
  std::map<std::string, YamlPlace> places_;
  std::vector<Problem> problems_;
};

}  // namespace sala
