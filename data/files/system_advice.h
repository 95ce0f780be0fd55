// What a user can do about an error of the operating system, to be said after its own words.
#pragma once

#include <string>

namespace sala {

// "; ..." for errors with one likely remedy, else nothing. Never speaks of damaged files: a system
// call that fails says nothing about what the file holds.
std::string system_advice(int code);

// Whether the same call may succeed a moment later, on a file that is opened anew: a server that
// fails over, a connection that was lost.
bool may_pass(int code);

}  // namespace sala
