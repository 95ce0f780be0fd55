// Environment variables of launchers, and the processes beside this one.
#include "trainer/ranks/environment.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace sala {
namespace {

namespace fs = std::filesystem;

const char* const kRankVariables[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                      "SLURM_PROCID"};

// Empty when the process has gone, or is not ours to look at.
std::string read_all(const fs::path& path) {
  std::string text;
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  char bytes[4096];
  ssize_t count = 0;
  while (file >= 0 && (count = read(file, bytes, sizeof bytes)) > 0) {
    text.append(bytes, static_cast<size_t>(count));
  }
  if (file >= 0) close(file);
  return text;
}

// State letter and parent of a process: the fields behind its name, which may hold anything.
struct ProcessState {
  char letter = '?';
  pid_t parent = -1;
};

ProcessState state_of(const fs::path& process) {
  ProcessState state;
  const std::string text = read_all(process / "stat");
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return state;
  std::sscanf(text.c_str() + name_end + 1, " %c %d", &state.letter, &state.parent);
  return state;
}

std::optional<int> rank_of(const fs::path& process) {
  const std::string environment = read_all(process / "environ");
  for (const char* name : kRankVariables) {
    const std::string start = std::string(1, '\0') + name + "=";
    const size_t at = ('\0' + environment).find(start);
    if (at != std::string::npos) return std::atoi(environment.c_str() + at + start.size() - 1);
  }
  return std::nullopt;
}

}  // namespace

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

std::optional<int> launched_rank() {
  for (const char* name : kRankVariables) {
    if (const char* rank = std::getenv(name)) return std::atoi(rank);
  }
  return std::nullopt;
}

std::string launcher_problem(int world_size) {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const bool mpi_launcher =
      std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMIX_RANK") || std::getenv("PMI_RANK");
  if (world_size == 1 && tasks && std::atoi(tasks) > 1 && !mpi_launcher) {
    return "srun started " + std::string(tasks) +
           " tasks, but MPI sees each alone; use srun --mpi=pmix or mpirun";
  }
  return "";
}

std::optional<double> stop_seconds() {
  const char* text = std::getenv("SALA_STOP_SECONDS");
  if (!text || *text == '\0') return std::nullopt;
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  if (*end != '\0' || !(seconds > 0)) {
    throw std::runtime_error("SALA_STOP_SECONDS: expected seconds above 0, got \"" +
                             std::string(text) + "\"");
  }
  return seconds;
}

std::vector<int> stopped_ranks_here() {
  std::vector<int> ranks;
  std::error_code none;
  for (fs::directory_iterator entry("/proc", none), end; entry != end; entry.increment(none)) {
    if (none) break;
    const ProcessState state = state_of(entry->path());
    if (state.letter != 'T' || state.parent != getppid()) continue;
    if (const auto rank = rank_of(entry->path())) ranks.push_back(*rank);
  }
  return ranks;
}

}  // namespace sala
