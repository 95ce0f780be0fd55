// The world of ranks: one process per GPU (or per share of the CPU cores), started by mpirun or
// srun. Without a launcher it is a world of one.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/collectives.h"

namespace sala {

// An error that every rank throws together: rank 0 alone tells of it, and no rank waits for
// another.
class SharedError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class World {
 public:
  // Initialises MPI (once per process; thread level funneled) and, with several ranks, a watchdog
  // (trainer/ranks/watchdog.h). Everything on the host works; the rest needs use_device.
  World(int* argc, char*** argv);
  World(int* argc, char*** argv, const std::string& device);  // and use_device
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Sets the OpenMP threads to cores of a node / local ranks, the same on all ranks, unless
  // OMP_NUM_THREADS is set; picks GPU local_rank; makes comm(). `device`: auto, cpu, cuda. Errors:
  // device cuda without a GPU, more local ranks than GPUs (NCCL refuses two ranks on one GPU).
  void use_device(const std::string& device);

  int rank() const;
  int size() const;
  int local_rank() const;
  int local_size() const;
  std::string host() const;
  at::Device device() const;
  at::ScalarType compute_dtype() const;  // fp32 on CPU, bf16 on CUDA

  // Collectives on tensors of device(): NCCL, or MPI on CPU. The watchdog sees those of all.
  Comm& comm();
  // Over the same ranks, so that weights and gradients on their way do not wait for each other or
  // for comm(). Each is a communicator of its own on GPUs, made at the first call, which is for all
  // ranks together; else comm().
  Comm& gather_comm();
  Comm& reduce_comm();
  // The same in groups of `ranks` neighbours (0: one group of all), and `copies` between the ranks
  // at the same place of each group; null where there is one group. Made at the first call, which
  // is for all ranks together. Throws where `ranks` does not divide size().
  struct ShardComms {
    Comm *gather = nullptr, *reduce = nullptr, *copies = nullptr;
  };
  ShardComms shard_comms(int ranks);
  // The `context` neighbouring ranks that share a sequence with this one: rank / context says which
  // data they read, rank % context is their place in the sequence and their rank here. Null for
  // context 1. Made at the first call for a degree, which is for all ranks together. Throws where
  // the degree does not divide size().
  Comm* sequence_comm(int context);
  // Host-side, always over MPI.
  void barrier();
  bool any(bool flag);  // true on all ranks if true on one
  double max(double x);
  std::string broadcast(const std::string& text, int root = 0);
  std::vector<std::string> gather(const std::string& text);        // on every rank, by rank
  std::vector<std::string> gather_first(const std::string& text);  // on rank 0; empty on others
  // Where this rank stands, for what other ranks say of it when it is stuck.
  void now_at(const std::string& stage, int64_t step);
  // Runs `work` on every rank; where one throws, all throw one SharedError that names the first
  // rank and its message (the message alone when it is the same on all), so that no rank waits for
  // ever. May be nested: the error of a rank that came to an inner one no more ends both for all.
  void together(const std::string& what, const std::function<void()>& work);
  [[noreturn]] void abort(const std::string& why);  // prints rank, host, why; ends all ranks

 private:
  void start_watchdog(double timeout, double stuck);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sala
