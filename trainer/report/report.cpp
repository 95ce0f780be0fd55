// The page from the folder's files.
#include "trainer/report/report.h"

#include <chrono>
#include <exception>

#include "data/files/atomic_file.h"
#include "data/files/file_calls.h"
#include "trainer/journal/own_files.h"
#include "trainer/report/page.h"

namespace sala {

Report::Report(const std::string& run_folder)
    : folder_(run_folder), reader_(run_folder + "/" + kMetricsFile) {}

void Report::write(Maybe alive) {
  reader_.read([&](nlohmann::json&& line) { record_.add(std::move(line)); });
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  PageContext context{folder_, "", now.count(), alive, reader_.num_unreadable()};
  const std::string recipe = folder_ + "/" + kRecipeFile;
  if (path_exists(recipe)) context.recipe = read_text_file(recipe);
  write_own_page(folder_ + "/" + kPageFile, report_page(record_, context));
}

std::string Report::try_to_write(Maybe alive) noexcept {
  try {
    write(alive);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace sala
