// Collectives behind one small interface: NCCL between GPUs (nccl_comm.cpp), MPI between CPU ranks
// (the trainer's World), or one process alone. All ranks call the same operations in the same
// order. Counts are elements. Calls are ordered with the current CUDA stream; on CPU they block.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

namespace sala {

// Where the collectives on the device stand, for a watchdog.
struct CommState {
  std::string error;      // that the library met in the background; empty: none
  std::string operation;  // the oldest that has begun on the device and not ended; empty: none
  int64_t num_done = 0;
};

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual void all_reduce_sum(at::Tensor& x) = 0;       // in place; fp32, fp64, int64
  virtual void broadcast(at::Tensor& x, int root) = 0;  // any dtype, contiguous
  virtual void all_gather(at::Tensor& out, const at::Tensor& in) = 0;  // out = R * in elements
  virtual void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) = 0;  // in = R * out
  // Both in place where the small tensor is this rank's slice of the large one, whose other slices
  // a reduce_scatter_sum leaves as they may be.
  virtual void send(const at::Tensor& x, int to) = 0;  // neighbour exchange (context parallelism)
  virtual void receive(at::Tensor& x, int from) = 0;
  // From any thread. Collectives that block the host have nothing to tell here.
  virtual CommState state() { return {}; }
};

// A world of one rank: every collective is the identity.
std::unique_ptr<Comm> make_single_comm();

#ifdef SALA_CUDA
// NCCL. The id comes from rank 0 (nccl_unique_id) and is spread by the caller.
std::vector<char> nccl_unique_id();
std::unique_ptr<Comm> make_nccl_comm(const std::vector<char>& id, int rank, int size);
#endif

}  // namespace sala
