// How many files the process may have open.
#pragma once

#include <cstdint>

namespace sala {

// As many as the system lets it raise the limit to, at most 64K: what comes after it in the process
// may look at each. Once, at the start; a refusal leaves the limit as it was.
void raise_file_limit();

// For one of those who keep files open: an eighth of the limit, 8 to `most`. The rest is for the
// others, for sockets, and for what libraries open.
int64_t share_of_open_files(int64_t most);

}  // namespace sala
