// What trained, which tensor came from where, the export, the recipe.
#include <fmt/format.h>

#include <map>

#include "trainer/charts/html.h"
#include "trainer/report/sections.h"

namespace sala {

using nlohmann::json;

namespace {

std::string parameters_table(const Record& record) {
  HtmlTable table;
  table.caption = "Parameters in training";
  table.columns = {"stage", "trainable", "frozen", "share that trains"};
  for (const StageRecord& stage : record.stages) {
    if (!stage.trainable) continue;
    const double frozen = stage.frozen.value_or(0), all = *stage.trainable + frozen;
    table.rows.push_back({stage.name,
                          {amount(stage.trainable), amount(frozen),
                           all > 0 ? percent(*stage.trainable / all, 1) : kNoValue},
                          false});
  }
  return table.html();
}

// "0-3, 5" of the layers, in order.
std::string ranges_text(const std::vector<int64_t>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", layers[i]);
    if (end - i > 1) text += fmt::format("{}{}", end - i == 2 ? ", " : kNoValue, layers[end - 1]);
    i = end;
  }
  return text;
}

// "model.layers.7.mlp.up" as its pattern "model.layers.N.mlp.up" and 7; no number: -1.
std::pair<std::string, int64_t> pattern_of(const std::string& name) {
  for (size_t at = 0; at < name.size(); ++at) {
    const bool starts = at == 0 || name[at - 1] == '.';
    if (!starts || name[at] < '0' || name[at] > '9') continue;
    const size_t end = name.find_first_not_of("0123456789", at);
    if ((end != std::string::npos && name[end] != '.') || end - at > 9) continue;
    const std::string rest = end == std::string::npos ? "" : name.substr(end);
    return {name.substr(0, at) + "N" + rest, std::stoll(name.substr(at, end - at))};
  }
  return {name, -1};
}

std::string origin_table(const json& origin) {
  std::map<std::pair<std::string, std::string>, std::vector<int64_t>> found;
  std::vector<std::pair<std::string, std::string>> order;
  for (const json& tensor : array_at(origin, "tensors")) {
    const auto [pattern, layer] = pattern_of(text_at(tensor, "tensor"));
    const std::pair key{pattern, text_at(tensor, "from")};
    if (!found.contains(key)) order.push_back(key);
    auto& layers = found[key];
    if (layer >= 0) layers.push_back(layer);
  }
  HtmlTable table;
  table.columns = {"tensor", "from", "N"};
  table.numbers = false;
  for (const auto& key : order) {
    table.rows.push_back({key.first, {key.second, ranges_text(found[key])}, false});
  }
  const std::string drawn = table.html();
  return drawn.empty() ? "" : folded("Which tensor came from where", drawn);
}

std::string export_lines(const Record& record) {
  std::string lines;
  for (const json& e : record.exports) {
    lines +=
        element("p", "", "Export: " + element("code", "", escaped(text_at(e, "folder")))) + "\n";
    for (const json& note : array_at(e, "notes")) {
      if (note.is_string()) lines += paragraph(note.get<std::string>());
    }
  }
  return lines;
}

}  // namespace

std::string origins_html(const Record& record, const PageContext& context) {
  std::string content = parameters_table(record) + export_lines(record);
  content += origin_table(record.origin);
  if (!context.recipe.empty()) {
    content += folded("The recipe, every value stated",
                      element("pre", "tabindex=\"0\"", escaped(context.recipe)) + "\n");
  }
  return section("origins", "What it is made of", content);
}

}  // namespace sala
