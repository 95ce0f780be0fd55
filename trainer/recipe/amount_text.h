// Amounts as people read them, 1000-based: "7.4 GB", "35 min", "8.4M".
#pragma once

#include <string>

namespace sala {

std::string bytes_text(double bytes);
std::string time_text(double seconds);
std::string amount_text(double value);

}  // namespace sala
