// The whole report as one HTML page without scripts, pictures or anything else from outside, which
// is well-formed XML.
#pragma once

#include <string>

#include "trainer/report/record.h"
#include "trainer/report/sections.h"

namespace sala {

std::string report_page(const Record& record, const PageContext& context);

}  // namespace sala
