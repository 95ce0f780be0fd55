// Ranks that MPI has started, and groups of them: what they agree on through the host, and the
// collectives of CPU ranks. mpi_group.cpp is the only file that includes MPI.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/collectives.h"

namespace sala {

std::string mpi_library();  // its name and version; needs no start

// Every call is for all ranks of the group together, in one order, and throws MPI's own text with
// the name of the `operation` where it fails. Thread level funneled: the main thread alone calls.
class MpiGroup {
 public:
  // All ranks. Starts MPI at its first call; MPI ends when the process exits.
  static MpiGroup all(int* argc, char*** argv);
  MpiGroup on_one_host() const;     // the ranks of this host
  MpiGroup split(int color) const;  // the ranks of the same color, in this group's order
  MpiGroup(MpiGroup&&) noexcept;
  ~MpiGroup();

  int rank() const;
  int size() const;

  void barrier() const;
  int64_t min(int64_t x, const char* operation) const;
  int64_t max(int64_t x, const char* operation) const;
  double max(double x, const char* operation) const;
  void bitwise_or(void* bytes, int64_t num_bytes, const char* operation) const;  // in place
  std::vector<uint64_t> gather(uint64_t x, const char* operation) const;         // by rank
  std::string broadcast(const std::string& text, int root = 0) const;
  // By rank, of any length; `on_all`, or on rank 0 alone (empty on others).
  std::vector<std::string> gather(const std::string& text, bool on_all) const;
  // On CPU tensors; the group outlives it.
  std::unique_ptr<Comm> collectives() const;
  void abort() const;  // ends all ranks

 private:
  struct Impl;
  explicit MpiGroup(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sala
