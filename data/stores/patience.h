// Reading on where the system refuses for a moment: a file server that fails over, a client that it
// has dropped. Without it one read among millions ends a run of months.
#pragma once

#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "data/files/file_calls.h"

namespace sala {

struct Patience {
  std::vector<double> pauses = {1, 5, 30};            // seconds before each further try
  std::function<void(const std::string& line)> tell;  // one line for people, before the first
  std::function<bool()> gives_up;                     // asked again and again in a pause
};

// Of this process; told before threads read. Returns what was in force before.
Patience set_patience(Patience patience);
// From here on this thread gives up when `stop` is requested, too.
void end_patience_with(std::stop_token stop);

// After try number `tries`, from 0, failed. False: there is no further one.
bool wait_to_try_again(const FileError& error, size_t tries);

// Calls `read` again after errors that may pass (data/files/system_advice.h), each time after a
// pause, in which the caller holds no lock, and `reopen`.
template <class Read, class Reopen>
auto read_patiently(const Read& read, const Reopen& reopen) {
  for (size_t tries = 0;; ++tries) {
    try {
      return read();
    } catch (const FileError& error) {
      if (!wait_to_try_again(error, tries)) throw;
    }
    reopen();
  }
}

}  // namespace sala
