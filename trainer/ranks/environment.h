// What a rank knows of itself and of the ranks beside it without MPI: from the launcher's
// environment variables and /proc.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace sala {

std::string host_name();

// The rank that mpirun or srun gave this process; nullopt without a launcher.
std::optional<int> launched_rank();

// srun without a PMI that this MPI knows starts N worlds of one, which would all write the same
// run: says so, on every rank; else empty. `world_size` is MPI's.
std::string launcher_problem(int world_size);

// Seconds between a launcher's stop signal and the end of the processes (SALA_STOP_SECONDS, which
// launch/run_slurm.sbatch sets); nullopt where nobody ends them. Throws when it is no such number.
std::optional<double> stop_seconds();

// Ranks that this rank's launcher started on this host and that somebody has stopped (SIGSTOP).
std::vector<int> stopped_ranks_here();

}  // namespace sala
