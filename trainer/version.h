// What --version tells.
#pragma once

#include <string>

namespace sala {

// Two lines: the program's version with its git revision where it was built in a checkout, and what
// it was built and runs with.
std::string version_text(const std::string& program);

}  // namespace sala
