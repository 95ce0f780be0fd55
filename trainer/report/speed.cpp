// Throughput, memory, what the steps' time went into, checkpoints.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/charts/bars.h"
#include "trainer/charts/html.h"
#include "trainer/charts/plot.h"
#include "trainer/report/sections.h"

namespace sala {

namespace {

// As the steps' clock names them; others follow by name.
const std::vector<std::string> kPhases = {"data", "forward", "backward", "communication",
                                          "optimizer"};
constexpr const char* kPhaseColors[] = {"c6", "c1", "c3", "c2", "c4", "c5"};

std::vector<std::string> phases_in(const Record& record) {
  std::vector<std::string> phases = kPhases;
  for (const StageRecord& stage : record.stages) {
    for (const auto& [phase, _] : stage.spent) {
      if (std::find(phases.begin(), phases.end(), phase) == phases.end()) phases.push_back(phase);
    }
  }
  return phases;
}

Maybe positive(double value) { return value > 0 ? Maybe(value) : Maybe(); }

std::string stage_table(const Record& record) {
  HtmlTable table;
  table.caption = "Speed and memory by stage";
  table.columns = {"stage", "steps", "tokens/s", "MFU", "memory", "time in steps", "time in all"};
  for (const StageRecord& s : record.stages) {
    if (s.num_steps == 0 && s.wall_seconds < 1) continue;
    table.rows.push_back(
        {s.name,
         {s.num_steps > 0 ? grouped(static_cast<double>(s.num_steps)) : kNoValue,
          s.tokens_per_second.empty() ? kNoValue : amount(s.tokens_per_second.median()),
          s.mfu.empty() ? kNoValue : percent(s.mfu.median(), 1), storage(positive(s.memory_bytes)),
          duration(positive(s.step_seconds)), duration(positive(s.wall_seconds))},
         false});
  }
  if (table.rows.empty()) return "";
  std::string note =
      "tokens/s of all ranks together and MFU are medians over steps; memory is the most that one "
      "rank has held since the program began.";
  if (const Maybe peak = number_at(record.start, "peak_flops"); peak && *peak > 0) {
    note += fmt::format(" MFU counts causal FLOPs against {} TFLOP/s a device.",
                        fixed(*peak / 1e12, 0));
  }
  return table.html() + paragraph(note);
}

std::string spent_bars(const Record& record) {
  const std::vector<std::string> phases = phases_in(record);
  std::string bars;
  std::vector<bool> used(phases.size(), false);
  for (const StageRecord& stage : record.stages) {
    std::vector<Part> parts;
    std::string words;
    double all = 0;
    for (const auto& [_, seconds] : stage.spent) all += seconds;
    for (size_t p = 0; p < phases.size() && all > 0; ++p) {
      const auto found = stage.spent.find(phases[p]);
      if (found == stage.spent.end() || found->second <= 0) continue;
      used[p] = true;
      parts.push_back({phases[p], found->second, kPhaseColors[p % std::size(kPhaseColors)]});
      words += fmt::format("{}{} {}", words.empty() ? "" : " \u00b7 ", phases[p],
                           percent(found->second / all, 1));
    }
    const std::string bar = stacked_bar(parts, stage.name + ": " + words);
    if (bar.empty()) continue;
    bars += element("div", "class=\"spent\"",
                    element("strong", "", escaped(stage.name)) + bar +
                        element("span", "class=\"unit\"", escaped(words))) +
            "\n";
  }
  if (bars.empty()) return "";
  std::string legend;
  for (size_t p = 0; p < phases.size(); ++p) {
    if (used[p]) {
      legend += legend_entry(kPhaseColors[p % std::size(kPhaseColors)], "box", phases[p]);
    }
  }
  return element("figure", "class=\"wide\"",
                 element("figcaption", "",
                         element("strong", "", "Where a step\u2019s time went") +
                             " <span class=\"unit\">on the first rank</span>") +
                     element("div", "class=\"legend\"", legend) + "\n" + bars) +
         "\n";
}

std::string saving_words(const SavingRecord& saving) {
  if (saving.count == 0) return "";
  return paragraph(fmt::format(
      "{} checkpoint{}: the run stood still for {} each (median; at most {}), writing took {} "
      "beside it (at most {}).",
      grouped(static_cast<double>(saving.count)), saving.count == 1 ? "" : "s",
      duration(saving.stall_seconds.median()), duration(saving.most_stall),
      duration(saving.write_seconds.median()), duration(saving.most_write)));
}

}  // namespace

std::string speed_html(const Record& record) {
  return section("speed", "Speed and memory",
                 stage_table(record) + spent_bars(record) + saving_words(record.saving));
}

}  // namespace sala
