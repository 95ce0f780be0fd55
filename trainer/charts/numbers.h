// Numbers as people read them: sensible digits, units, and a dash for what is not there.
#pragma once

#include <optional>
#include <string>

namespace sala {

using Maybe = std::optional<double>;  // absent, or not finite: shown as a dash

inline constexpr const char* kNoValue = "\u2013";

std::string fixed(Maybe value, int decimals);        // "2.870"
std::string significant(Maybe value, int digits);    // "0.00312", "1,230", "3.1e-07"
std::string percent(Maybe share, int decimals = 0);  // 0.279 -> "27.9 %", unbroken
std::string grouped(double count);                   // "1,234,567"
std::string amount(Maybe value);                     // 1000-based: "512", "8.2K", "1.5M"
std::string length_text(Maybe tokens);               // 1024-based where exact: "4K", "1000"
std::string duration(Maybe seconds);                 // "40 ms", "2.3 s", "3 min 05 s", "2 h 10 min"
std::string storage(Maybe bytes);                    // "57.1 GB"
std::string moment(Maybe epoch_seconds);             // "2025-01-31 12:05 UTC"

// "2.870 ± 0.042"; without an error the value alone.
std::string with_error(Maybe value, Maybe error, int decimals);

}  // namespace sala
