// What is converted into what, how far the run is, how to make it again.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "trainer/charts/html.h"
#include "trainer/charts/plot.h"
#include "trainer/report/sections.h"

namespace sala {

using nlohmann::json;

namespace {

// The value of a top-level key of the resolved recipe: "source: build/demo/model".
std::string recipe_value(const std::string& recipe, const std::string& key) {
  const std::string start = key + ": ";
  for (size_t at = 0; at < recipe.size();) {
    const size_t end = std::min(recipe.find('\n', at), recipe.size());
    if (recipe.compare(at, start.size(), start) == 0) {
      return recipe.substr(at + start.size(), end - at - start.size());
    }
    at = end + 1;
  }
  return "";
}

// A name for the page's title: the last folder of the path.
std::string short_name(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path;
  const size_t slash = path.find_last_of('/', end);
  return path.substr(slash == std::string::npos ? 0 : slash + 1,
                     end - (slash == std::string::npos ? 0 : slash + 1) + 1);
}

std::string source_of(const Record& record, const PageContext& context) {
  const std::string folder = text_at(object_at(record.start, "source"), "folder");
  return folder.empty() ? recipe_value(context.recipe, "source") : folder;
}

std::string shape_text(const json& source) {
  std::string text;
  const auto add = [&](const char* key, const char* pattern) {
    if (const Maybe value = number_at(source, key)) {
      text += (text.empty() ? "" : ", ") + fmt::format(fmt::runtime(pattern), grouped(*value));
    }
  };
  if (const Maybe all = number_at(source, "parameters")) text = amount(all) + " parameters";
  add("layers", "{} layers");
  add("width", "width {}");
  add("ffn_width", "feed-forward {}");
  add("heads", "{} query heads");
  add("kv_heads", "{} key/value heads");
  add("head_size", "head size {}");
  add("vocabulary", "vocabulary {}");
  add("context", "context {}");
  return text;
}

size_t num_layers(const Record& record) {
  if (const Maybe layers = number_at(object_at(record.start, "source"), "layers")) {
    return static_cast<size_t>(std::clamp(*layers, 0.0, 4096.0));
  }
  size_t most = 0;  // runs of older programs: what was scored, or kept
  for (const json& scores : record.scores) most = std::max(most, array_at(scores, "layers").size());
  for (const int64_t layer : kept_in(record)) {
    most = std::max(most, static_cast<size_t>(std::clamp<int64_t>(layer + 1, 0, 4096)));
  }
  return most;
}

// A row of L cells: which layer is what.
std::string layout(const Record& record) {
  const std::vector<int64_t> kept = kept_in(record);
  const size_t count = num_layers(record);
  if (count == 0 || kept.empty()) return "";
  std::string cells;
  for (size_t l = 0; l < count; ++l) {
    const bool keeps = std::find(kept.begin(), kept.end(), static_cast<int64_t>(l)) != kept.end();
    const char* what = keeps ? "softmax attention" : "linear attention";
    cells += element(
        "li",
        fmt::format("class=\"{0}\" title=\"layer {1}: {2}\"", keeps ? "kept" : "linear", l, what),
        std::to_string(l));
  }
  const std::string words =
      fmt::format("{} of {} layers keep softmax attention", kept.size(), count);
  return element(
             "figure", "class=\"wide\"",
             element("figcaption", "", element("strong", "", words)) +
                 element("div", "class=\"legend\"",
                         legend_entry("kept", "box", "softmax, block-sparse on long documents") +
                             legend_entry("linear", "box", "linear (lightning)")) +
                 element("ol", "class=\"layout\"", cells)) +
         "\n";
}

struct State {
  std::string word, css;  // "running", its class
};

State state_of(const Record& record, const PageContext& context) {
  if (record.ended) return {"finished", "good"};
  if (!record.error.empty()) return {"ended with an error", "bad"};
  if (context.alive && *context.alive > 0) return {"running", "live"};
  if (record.stopped) return {"stopped, can be continued", "quiet"};
  if (context.alive) return {"not running, can be continued", "quiet"};
  return {"not finished", "quiet"};
}

// Seconds to the end, from the plan's arithmetic and this stage's speed; nothing before there is
// something to go by.
Maybe seconds_left(const Record& record) {
  const StageRecord* now = record.stage(record.current_stage);
  if (!now || now->num_steps < 3 || now->step_seconds <= 0) return {};
  double left = 0, flops_per_second = 0;
  for (const json& planned : array_at(record.start, "stages")) {
    const double flops = number_at(planned, "flops").value_or(0);
    const double steps = number_at(planned, "steps").value_or(0);
    if (text_at(planned, "name") == now->name && steps > 0) {
      const double per_step = now->step_seconds / static_cast<double>(now->num_steps);
      left = per_step * std::max(0.0, steps - static_cast<double>(now->last_step));
      flops_per_second = flops / (per_step * steps);
    } else if (flops_per_second > 0) {
      left += flops / flops_per_second;
    }
  }
  return flops_per_second > 0 ? Maybe(left) : Maybe();
}

std::string stage_words(const Record& record, const json& planned) {
  const StageRecord* made = record.stage(text_at(planned, "name"));
  const double steps = number_at(planned, "steps").value_or(0);
  if (!made || made->num_steps == 0 || steps <= 1) return "";
  return fmt::format(" {} / {}", grouped(static_cast<double>(made->last_step)), grouped(steps));
}

// The recipe's stages in a row, and where the run stands among them.
std::string stages_row(const Record& record) {
  const json& stages = array_at(record.start, "stages");
  std::string cells;
  bool passed = false;  // the stage that is under way
  const bool known = std::any_of(stages.begin(), stages.end(), [&](const json& s) {
    return text_at(s, "name") == record.current_stage;
  });
  for (const json& planned : stages) {
    const std::string name = text_at(planned, "name");
    const bool now = known && !record.ended && name == record.current_stage;
    const char* state = now ? "now" : record.ended || (known && !passed) ? "done" : "next";
    passed = passed || now;
    const std::string words = std::string(state) == "next" ? "" : stage_words(record, planned);
    cells +=
        element("li", fmt::format("class=\"{}\"", state) + (now ? " aria-current=\"step\"" : ""),
                escaped(name + words));
  }
  return cells.empty() ? "" : element("ol", "class=\"stages\"", cells) + "\n";
}

std::string code(const std::string& text) { return element("code", "", escaped(text)); }

FactList facts_of(const Record& record, const PageContext& context) {
  FactList facts;
  const auto add = [&](const std::string& name, const std::string& markup) {
    if (!markup.empty()) facts.emplace_back(name, markup);
  };
  const json& start = record.start;
  const std::string source = source_of(record, context);
  const std::string shape = shape_text(object_at(start, "source"));
  const std::string family = text_at(object_at(start, "source"), "family");
  add("source", source.empty() ? "" : code(source));
  add("shape", escaped(family + (family.empty() || shape.empty() ? "" : ": ") + shape));
  std::string device = text_at(start, "device");
  if (const Maybe ranks = number_at(start, "ranks")) {
    device = fmt::format("{} rank{} on {}", grouped(*ranks), *ranks == 1 ? "" : "s", device);
  }
  add("machine", escaped(device));
  std::string time = moment(record.first_time);
  if (record.run_seconds > 0) {
    time += fmt::format(", {} of running", duration(record.run_seconds));
    if (record.num_starts > 1) {
      time += fmt::format(" in {} starts", grouped(static_cast<double>(record.num_starts)));
    }
  }
  add("begun", record.first_time ? escaped(time) : "");
  add("trained on", record.tokens > 0 ? escaped(amount(record.tokens) + " tokens") : "");
  add("run folder", context.folder.empty() ? "" : code(context.folder));
  add("continues", record.forked_from.empty() ? "" : code(record.forked_from));
  add("started by", text_at(start, "command").empty() ? "" : code(text_at(start, "command")));
  if (!context.recipe.empty() && !context.folder.empty()) {
    const double ranks = number_at(start, "ranks").value_or(1);
    add("again", code(fmt::format("launch/run_local.sh {0}/recipe.yaml -n {1} --set "
                                  "run.folder={0}_again",
                                  context.folder, static_cast<int64_t>(ranks))) +
                     " <span class=\"unit\">(a new folder for an export stage too)</span>");
  }
  add("made with", escaped(text_at(start, "program")));
  return facts;
}

}  // namespace

std::string stage_type(const Record& record, const std::string& stage) {
  for (const json& planned : array_at(record.start, "stages")) {
    if (text_at(planned, "name") == stage) return text_at(planned, "type");
  }
  return "";
}

std::string head_html(const Record& record, const PageContext& context) {
  const State state = state_of(record, context);
  std::string words = element("span", "class=\"state " + state.css + "\"", escaped(state.word));
  if (!record.ended && !record.current_stage.empty()) {
    words += " " + escaped("in stage " + record.current_stage);
    if (const Maybe left = seconds_left(record); left && state.css == "live") {
      words += escaped(", about " + duration(left) + " left");
    }
  }
  const std::string name = short_name(source_of(record, context));
  std::string content =
      element("h1", "", escaped(name.empty() ? "Conversion" : "Conversion of " + name)) + "\n" +
      element("p", "class=\"lead\"",
              words + " <span class=\"unit\">as of " + escaped(moment(context.now)) + "</span>") +
      "\n" + stages_row(record);
  if (!record.error.empty()) {
    content += element("p", "class=\"warning\"", escaped(record.error)) + "\n";
  }
  return element("header", "", content + layout(record) + fact_list(facts_of(record, context))) +
         "\n";
}

}  // namespace sala
