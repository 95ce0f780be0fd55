// The parts of the page, in its order; each is empty where the run has nothing to show for it yet.
#pragma once

#include <string>

#include "trainer/report/record.h"

namespace sala {

struct PageContext {
  std::string folder;          // the run's, as the user named it
  std::string recipe;          // recipe.yaml, every value stated; may be empty
  Maybe now;                   // seconds since the epoch
  Maybe alive;                 // 1: a process works on it; 0: none does; nothing: not known
  int64_t num_unreadable = 0;  // lines of metrics.jsonl
};

// Kept layers of the hybrid, by its newest swap; empty before.
std::vector<int64_t> kept_in(const Record& record);
std::string stage_type(const Record& record, const std::string& stage);  // "" unknown

std::string head_html(const Record& record, const PageContext& context);  // a header, no section
std::string results_html(const Record& record);                           // after each stage
std::string layers_html(const Record& record);     // scores, errors of alignment
std::string training_html(const Record& record);   // curves
std::string retrieval_html(const Record& record);  // needles and tasks by length
std::string choices_html(const Record& record);
std::string positions_html(const Record& record);  // loss by position
std::string speed_html(const Record& record);      // where time and memory went
std::string origins_html(const Record& record, const PageContext& context);

}  // namespace sala
