// report.html as a file: read on from where it stood, never in the place of what is not ours; and
// report.txt.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "data/files/atomic_file.h"
#include "tests/trainer/report_run.h"
#include "tests/trainer/well_formed.h"
#include "trainer/journal/report.h"
#include "trainer/report/report.h"

namespace sala {
namespace {

using nlohmann::json;
using test::XmlCheck;

struct Folder {
  explicit Folder(const std::string& name)
      : path(testing::TempDir() + "sala_page_" + name + std::to_string(getpid())) {
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

void write_lines(const std::string& path, const std::vector<std::string>& lines) {
  std::ofstream file(path, std::ios::app);
  for (const std::string& line : lines) file << line;
}

TEST(Report, ReadsOnWhereItStood) {
  const Folder run("on");
  const std::string metrics = run.path + "/metrics.jsonl";
  Report report(run.path);
  report.write({});  // no metrics yet
  write_lines(metrics, {"{\"event\":\"start\",\"ranks\":1}\n", "{\"event\":\"step\",\"st"});
  report.write(1);
  EXPECT_EQ(report.record().num_lines, 1);
  write_lines(metrics, {"age\":\"train\",\"step\":1,\"loss\":2.5,\"tokens\":10}\n", "no json\n",
                        "[1]\n", "\n",
                        "{\"event\": \"step\", \"stage\": \"train\", \"step\": 2, \"loss\": NaN, "
                        "\"lr\": -Infinity, \"text\": \"NaN\", \"tokens\": 20}\n"});
  report.write(0);
  EXPECT_EQ(report.record().num_lines, 3);
  ASSERT_EQ(report.record().stages.size(), 1u);
  EXPECT_EQ(report.record().stages[0].loss.count(), 1);
  EXPECT_EQ(report.record().tokens, 20);
  const std::string page = read_text_file(run.path + "/report.html");
  EXPECT_EQ(XmlCheck(page)(), "");
  EXPECT_NE(page.find("not running"), std::string::npos);
  EXPECT_NE(page.find("3 of its lines could not be read"), std::string::npos);
}

TEST(Report, LeavesOutNormsOfSingleTensorsAndNothingElse) {
  const json line = parse_metrics_line(
      R"({"event":"step","grad_norms":{"a":1,"b":2},"loss":2.5,"spent":{"data":1}})");
  EXPECT_EQ(line, json::parse(R"({"event":"step","loss":2.5,"spent":{"data":1}})"));
  EXPECT_EQ(parse_metrics_line(R"({"a":1,"grad_norms":{"a":1}})").at("a"), 1);
  EXPECT_TRUE(parse_metrics_line("{").is_discarded());
}

TEST(Report, APageOfSomebodyElseStays) {
  const Folder run("other");
  const std::string path = run.path + "/report.html";
  Report report(run.path);
  EXPECT_EQ(report.try_to_write({}), "");
  EXPECT_EQ(report.try_to_write({}), "");  // ours is replaced
  std::ofstream(path, std::ios::app) << "edited";
  EXPECT_NE(report.try_to_write({}).find("edited since"), std::string::npos);
  EXPECT_TRUE(read_text_file(path).ends_with("edited"));
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  EXPECT_NE(Report("/nonexistent/run").try_to_write({}), "");
}

TEST(ReportText, HasTop1TasksAndChoicesWhereTheyWereMeasured) {
  json plain = test::evaluation_of("teacher", true, 2.679, 1);
  for (const char* key : {"tasks", "task_mean", "choices"}) plain.erase(key);
  EXPECT_EQ(evaluation_table(json::array({plain})).find("arc_easy"), std::string::npos);
  const std::string table = evaluation_table(json::array(
      {test::evaluation_of("teacher", true, 2.679, 1), test::evaluation_of("swap", false, 4, 0)}));
  for (const char* shown :
       {"top-1", "0.812", "tasks@1024  tasks@16384  arc_easy", "0.600", "0.550", "needle@16384"}) {
    EXPECT_NE(table.find(shown), std::string::npos) << shown << "\n" << table;
  }
}

}  // namespace
}  // namespace sala
