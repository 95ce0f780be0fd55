// When the page is written again.
#include "trainer/report/live_page.h"

namespace sala {

void LivePage::refresh() {
  constexpr std::chrono::seconds kAge{60};
  if (std::chrono::steady_clock::now() - written_ >= kAge) write(/*alive=*/true);
}

void LivePage::write(bool alive) {
  const std::string error = report_.try_to_write(alive ? 1 : 0);
  written_ = std::chrono::steady_clock::now();
  if (!error.empty() && !failed_) {
    metrics_.note("report.html could not be written, the run goes on: " + error);
  }
  failed_ = !error.empty();
}

}  // namespace sala
