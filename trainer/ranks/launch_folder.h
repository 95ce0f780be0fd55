// What launch/run_local.sh and the ranks tell each other beside mpirun, which answers a signal by
// killing, loses one that comes before the ranks stand, and calls every end but 0 an abort. The
// script names a folder in SALA_LAUNCH_FOLDER:
//   running  renamed to `stop` when the run shall checkpoint and end (a rename needs no space)
//   code     written by rank 0: the exit code that all ranks agreed on
#pragma once

namespace sala {

bool launcher_asks_to_stop();

// What to return from main for a `code` that every rank ends with: 0 where a launcher is told the
// code by its file, else the code. Collective only in that all ranks must call it.
int code_for_launcher(int code, bool first_rank);

}  // namespace sala
