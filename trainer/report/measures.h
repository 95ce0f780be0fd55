// What evaluations measured, as rows of a table: one for each quantity, one value for each
// evaluation, the teacher's first.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/charts/interval.h"
#include "trainer/report/record.h"

namespace sala {

struct Measured {
  Maybe value, low, high;  // the 95 % interval, where there is one
  Maybe count;             // of trials, where there are any
};

struct Measure {
  std::string group, name;       // "books", "loss"
  bool is_rate = false;          // 0 to 1, shown in percent
  std::vector<Measured> values;  // as the table's columns
};

struct MeasureTable {
  std::vector<std::string> columns;
  std::vector<Measure> measures;
};
MeasureTable measure_table(const std::vector<nlohmann::json>& evaluations);

std::string shown(const Measured& value, bool is_rate);  // "2.870 ± 0.042", "92 % (75–98)"

bool is_teacher(const nlohmann::json& evaluation);
// The newest evaluation of the student that has `key`, and what the teacher's evaluations say under
// it: the one with equal options first. Null where there is none.
const nlohmann::json* latest_student(const Record& record, const std::string& key);
const nlohmann::json* teacher_beside(const Record& record, const nlohmann::json* student,
                                     const std::string& key);

}  // namespace sala
