// The page of report.html: what it shows, that it is well-formed whatever the metrics hold, that it
// stays small.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "tests/trainer/report_run.h"
#include "tests/trainer/well_formed.h"
#include "trainer/report/measures.h"
#include "trainer/report/page.h"

namespace sala {
namespace {

using nlohmann::json;
using test::XmlCheck;

Record record_of(const std::vector<json>& lines) {
  Record record;
  for (const json& line : lines) record.add(json(line));
  return record;
}

PageContext context(const std::string& recipe = "") {
  return {fmt::format("run/{}", test::kHostile), recipe, 1.7e9, 1, 0};
}

std::string page_of(const std::vector<json>& lines) {
  return report_page(record_of(lines), context(std::string("source: ") + test::kHostile + "\n"));
}

size_t count_of(const std::string& text, const std::string& word) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(word, at)) != std::string::npos; ++at) ++count;
  return count;
}

TEST(ReportPage, ShowsEverythingThatARunRecords) {
  const std::string page = page_of(test::whole_run());
  EXPECT_EQ(XmlCheck(page)(), "");
  for (const char* id :
       {"results", "layers", "training", "retrieval", "choices", "positions", "speed", "origins"}) {
    EXPECT_EQ(count_of(page, "<h2 id=\"" + std::string(id) + "\">"), 1u) << id;
  }
  for (const char* shown : {"finished",
                            "135M parameters, 3 layers",
                            "2 of 3 layers keep softmax attention",
                            "2.870 \u00b1 0.039",
                            "0.345 \u00b1 0.010",
                            "81.2\u00a0% (81.1\u201381.4)",  // loss, KL, top-1
                            "92\u00a0% (81\u201397)",
                            "55\u00a0%",
                            "52.6 \u00b1 2.0",
                            "2,376",
                            "25.0",  // needles, tasks, choices
                            "layer 2: 3.500 \u00b1 0.250, kept",
                            "Importance by other",
                            "within noise",
                            "Median 2.00.",
                            "learning rate, peak 0.001",
                            "step skipped: not finite",
                            "spike of loss or gradient",
                            "train: 1 spike",
                            "stage train step 8: spike: loss 9",
                            "35.6K",
                            "27.9\u00a0%",
                            "25.1 GB",
                            "backward 72.5\u00a0%",
                            "4.5 s",
                            "135M",
                            "28.3M",
                            "layers.N.q",
                            "0, 1",
                            "98.3K tokens"}) {
    EXPECT_NE(page.find(shown), std::string::npos) << shown;
  }
}

TEST(ReportPage, NamesAreNeverMarkup) {
  const std::string page = page_of(test::whole_run());
  EXPECT_EQ(page.find("<b>"), std::string::npos);
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_GT(count_of(page, "&lt;b&gt;&amp;&quot;'&lt;/b&gt;&lt;script&gt;"), 10u);
  EXPECT_EQ(XmlCheck(report_page({}, {"\xff\x01<&", "\xc3(\x02\xed\xa0\x80", {}, {}, 3}))(), "");
}

TEST(ReportPage, NeedsNothingFromElsewhere) {
  const std::string page = page_of(test::whole_run());
  for (const char* outside : {"src=", "href=", "url(", "@import"}) {
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  }
  EXPECT_EQ(count_of(page, "http"), 1u);  // the name of XHTML
}

TEST(ReportPage, EveryBeginningOfARunHasAPage) {
  const std::vector<json> lines = test::whole_run();
  for (size_t count = 0; count <= lines.size(); ++count) {
    const std::vector<json> first(lines.begin(), lines.begin() + static_cast<int64_t>(count));
    EXPECT_EQ(XmlCheck(page_of(first))(), "") << "after " << count << " lines";
  }
}

// Every value of every line in turn becomes each of these, or is gone.
void mutate(json& value, const std::function<void()>& look) {
  const json whole = value;
  const json odd[] = {nullptr, "text", -1e300, json::array({1, "x"})};
  for (const json& other : odd) {
    value = other;
    look();
  }
  value = whole;
  if (!value.is_structured()) return;
  if (value.is_object()) {
    for (const auto& [key, inner] : whole.items()) {
      value.erase(key);
      look();
      value = whole;
    }
  }
  for (json& inner : value) mutate(inner, look);
}

TEST(ReportPage, NoValueBreaksIt) {
  // The first of each kind of line: mutating all of them would show nothing new.
  std::vector<json> lines;
  std::set<std::string> seen;
  for (const json& line : test::whole_run()) {
    const std::string event = line.at("event");
    const std::string kind = event + line.value(event == "step" ? "stage" : "model", "");
    if (seen.insert(kind).second) lines.push_back(line);
  }
  int64_t num_pages = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string event = lines[i].at("event");
    for (auto& [key, value] : lines[i].items()) {
      if (key == "event") continue;
      mutate(value, [&] {
        ++num_pages;
        const std::string wrong = XmlCheck(page_of(lines))();
        ASSERT_EQ(wrong, "") << event << "." << key;
      });
    }
  }
  EXPECT_GT(num_pages, 1000);
}

TEST(ReportPage, OneStepIsAPoint) {
  std::vector<json> lines = test::whole_run();
  lines.resize(2);  // start and the first step
  const std::string page = page_of(lines);
  EXPECT_NE(page.find("class=\"dot c1\""), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_NE(page.find("running"), std::string::npos);
}

TEST(ReportPage, AHundredThousandStepsStaySmall) {
  Record record;
  json line = {{"event", "step"}, {"stage", "train"}, {"finite", true}, {"lr", 1e-4}};
  for (int step = 1; step <= 100'000; ++step) {
    line["step"] = step;
    line["tokens"] = 4096.0 * step;
    line["loss"] = 2 + 1.0 / step + (step == 70'001 ? 5 : 0);
    line["grad_norm"] = 1.0 + step % 7;
    record.add(json(line));
    if (step % 100 != 0) continue;
    json evaluation = test::evaluation_of("train", false, 2.5, 0.5);
    evaluation.update({{"step", step}, {"tokens", 4096.0 * step}});
    record.add(std::move(evaluation));
  }
  const std::string page = report_page(record, context());
  EXPECT_EQ(XmlCheck(page)(), "");
  EXPECT_LT(page.size(), 400'000u);
  const Series& loss = record.stages.at(0).loss;
  EXPECT_EQ(loss.count(), 100'000);
  EXPECT_LE(loss.bins().size(), Series::kMostBins);
  int64_t count = 0;
  double highest = 0;
  for (const Series::Bin& bin : loss.bins()) {
    count += bin.count;
    highest = std::max(highest, bin.high);
  }
  EXPECT_EQ(count, 100'000);
  EXPECT_GT(highest, 7) << "the spike of one step is gone";
}

TEST(ReportPage, TeachersOfDifferentStagesAreOneColumnWhereTheyAgree) {
  json first = test::evaluation_of("teacher", true, 2.679, 1.0), second = first;
  second["needles"] = {{{"length", 4096}, {"depth", 0.5}, {"hits", 22}, {"count", 25}}};
  MeasureTable table = measure_table({first, test::evaluation_of("swap", false, 4, 0), second});
  EXPECT_EQ(table.columns, (std::vector<std::string>{"teacher", "swap"}));
  second["sources"]["textbooks"]["loss"] = 2.5;
  second["options"]["row_length"] = 2048;
  table = measure_table({first, second});
  EXPECT_EQ(table.columns,
            (std::vector<std::string>{"teacher, rows of 4K", "teacher, rows of 2K"}));
}

TEST(ReportPage, AForkShowsWhatItsBeginningHadMeasured) {
  const std::vector<json> lines = {
      {{"event", "start"}, {"time", 1.7e9}},
      {{"event", "fork"},
       {"from", "other/checkpoint"},
       {"evaluations", {test::evaluation_of("teacher", true, 2.679, 1)}},
       {"scores", {{"method", "kl"}, {"layers", {{{"layer", 0}, {"score", 1.25}}}}}},
       {"kept", {0}},
       {"verdicts", {"worse"}}}};
  const std::string page = page_of(lines);
  for (const char* shown : {"other/checkpoint", "2.679", "layer 0: 1.250, kept", "worse"}) {
    EXPECT_NE(page.find(shown), std::string::npos) << shown;
  }
}

}  // namespace
}  // namespace sala
