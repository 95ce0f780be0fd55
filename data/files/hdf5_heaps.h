// Guards HDF5 against its own strings. It keeps strings of variable length in heaps ("GCOL",
// section III.E of the HDF5 file format), believes the sizes in them, and ends the process or runs
// for ever where one is wrong. Everything else that we tried to damage it refuses.
#pragma once

#include <string>

namespace sala {

// Walks the heaps in the first and the last 64 KiB of the file, where writers of few attributes put
// them. One whose sizes do not add up: std::runtime_error with one line.
void check_string_heaps(const std::string& path);

}  // namespace sala
