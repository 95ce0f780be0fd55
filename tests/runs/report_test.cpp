// report.html of whole runs: finished, stopped, and where it cannot be written.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>

#include "data/files/atomic_file.h"
#include "tests/runs/toy_run.h"
#include "tests/trainer/well_formed.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;

std::string page_of(const ToyRun& toy, const std::string& name) {
  std::string page = read_text_file(toy.run_folder(name) + "/report.html");
  EXPECT_EQ(XmlCheck(page)(), "");
  return page;
}

TEST(ReportOfRuns, AFinishedRunHasEverySectionAndCanBeWrittenAgain) {
  const ToyRun toy;
  ASSERT_EQ(toy.run("run", 2), 0) << toy.log("run");
  const std::string page = page_of(toy, "run");
  for (const char* shown :
       {"finished", "2 of 3 layers keep softmax attention", "id=\"results\"", "id=\"layers\"",
        "id=\"training\"", "id=\"retrieval\"", "id=\"positions\"", "id=\"speed\"",
        "Parameters in training", "Which tensor came from where", "aligned lightning mixer",
        "2 ranks on", "sala-train ", "--set run.folder="}) {
    EXPECT_NE(page.find(shown), std::string::npos) << shown;
  }
  const std::string path = toy.run_folder("run") + "/report.html";
  fs::remove(path);
  const std::string inspect = SALA_BIN_DIR "/sala-inspect --html ";
  EXPECT_EQ(std::system((inspect + toy.run_folder("run") + " > /dev/null").c_str()), 0);
  EXPECT_NE(page_of(toy, "run").find("finished"), std::string::npos);
  EXPECT_NE(std::system((inspect + toy.folder() + " 2> /dev/null").c_str()), 0);
}

TEST(ReportOfRuns, AStoppedRunSaysSoAndAPageThatCannotBeWrittenStopsNothing) {
  const ToyRun toy({.stages = "  - train: {tokens: 20480, row_length: 64, batch_tokens: 512, "
                              "data: {a: 1}, lr: 1e-3}\n"});
  const pid_t process = toy.start("run", 1);
  ASSERT_TRUE(toy.wait_for_step("run", process, "train", 2));
  EXPECT_NE(page_of(toy, "run").find("running"), std::string::npos);
  kill(process, SIGUSR1);
  int status = 0;
  waitpid(process, &status, 0);
  ASSERT_EQ(WEXITSTATUS(status), 75) << toy.log("run");
  EXPECT_NE(page_of(toy, "run").find("stopped, can be continued"), std::string::npos);

  const std::string path = toy.run_folder("run") + "/report.html";
  fs::remove(path);
  fs::create_directory(path);
  EXPECT_EQ(toy.run("run", 1), 0) << toy.log("run");
  EXPECT_NE(toy.log("run").find("report.html could not be written, the run goes on"),
            std::string::npos)
      << toy.log("run");
}

}  // namespace
}  // namespace sala::test
