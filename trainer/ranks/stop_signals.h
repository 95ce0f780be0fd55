// Being asked to stop. The runner reads the request at every boundary of every loop, writes a
// checkpoint and ends with kExitCheckpointed.
#pragma once

namespace sala {

// SIGTERM, SIGINT, SIGUSR1 and SIGHUP (a closed terminal or connection) set a flag from here on;
// those that came while the program was loading, held back by launched_main.cpp, set it now. A
// second SIGINT ends the program at once. Under nohup SIGHUP stays ignored.
// SIGPIPE and SIGXFSZ become errors of the write that met them: output that nobody reads or a file
// at its limit is no reason to die. First thing in main, before any thread.
void catch_stop_signals();

// A signal came, or the launcher asks (launch_folder.h).
bool stop_requested();

// Exit code of a run that stopped before its end: run it again to go on.
inline constexpr int kExitCheckpointed = 75;

}  // namespace sala
