// The only door to NCCL. Every call is queued on the current CUDA stream of the tensor's device and
// returns at once; tensors are recorded on that stream, so the caller may let go of them. A send
// and its receive meet on the stream: neighbours must not both send first. An event before and one
// after each collective tell a watchdog which one the device is in.

#ifdef SALA_CUDA

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <mutex>

#include "kernels/collectives.h"

namespace sala {
namespace {

std::string host_name() {
  char name[256] = "unknown host";
  gethostname(name, sizeof(name) - 1);
  return name;
}

void nccl_check(ncclResult_t result, const char* statement, const char* file, int line, int rank,
                ncclComm_t comm) {
  if (result == ncclSuccess) return;
  const char* last = ncclGetLastError(comm);
  TORCH_CHECK(false, "NCCL failed at ", file, ":", line, " on rank ", rank, " (", host_name(),
              "): ", statement, ": ", ncclGetErrorString(result),
              "; NCCL's last error: ", last != nullptr && *last != '\0' ? last : "none");
}

#define ncclCheck(statement, rank, comm) \
  nccl_check((statement), #statement, __FILE__, __LINE__, (rank), (comm))

ncclDataType_t nccl_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kLong:
      return ncclInt64;
    case at::kInt:
      return ncclInt32;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kByte:
      return ncclUint8;
    default:
      TORCH_CHECK(false, "NCCL: expected float, double, bfloat16, int64, int32 or uint8, got ",
                  dtype);
  }
}

// The collectives that were queued and have not ended, in the order of their queueing. One thread
// queues, another looks.
class InFlight {
 public:
  ~InFlight() {
    for (const Queued& q : queued_) free_.insert(free_.end(), {q.begin, q.end});
    for (cudaEvent_t event : free_) cudaEventDestroy(event);
  }

  // Calls `queue`, which puts one collective on the stream, between two events. Not under the lock:
  // the first of its kind connects to the other ranks.
  template <class Queue>
  void add(const char* name, cudaStream_t stream, const Queue& queue) {
    const Queued queued = begin(name);
    C10_CUDA_CHECK(cudaEventRecord(queued.begin, stream));
    queue();
    C10_CUDA_CHECK(cudaEventRecord(queued.end, stream));
    const std::lock_guard lock(mutex_);
    queued_.push_back(queued);
  }

  CommState state() {
    const std::lock_guard lock(mutex_);
    reap();
    CommState state;
    state.num_done = num_done_;
    if (!queued_.empty() && cudaEventQuery(queued_.front().begin) == cudaSuccess) {
      state.operation = queued_.front().name;
    }
    return state;
  }

 private:
  struct Queued {
    const char* name;
    cudaEvent_t begin, end;
  };

  Queued begin(const char* name) {
    const std::lock_guard lock(mutex_);
    reap();
    return {name, take(), take()};
  }

  // Several streams may end out of order; then the oldest holds the others up, which is only told.
  void reap() {
    while (!queued_.empty() && cudaEventQuery(queued_.front().end) == cudaSuccess) {
      free_.insert(free_.end(), {queued_.front().begin, queued_.front().end});
      queued_.pop_front();
      ++num_done_;
    }
    cudaGetLastError();  // "not ready" is an answer, not an error for the next launch to find
  }

  cudaEvent_t take() {
    cudaEvent_t event = nullptr;
    if (free_.empty()) {
      C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    } else {
      event = free_.back();
      free_.pop_back();
    }
    return event;
  }

  std::mutex mutex_;
  std::deque<Queued> queued_;
  std::vector<cudaEvent_t> free_;
  int64_t num_done_ = 0;
};

class NcclComm : public Comm {
 public:
  NcclComm(const std::vector<char>& id, int rank, int size)
      : rank_(rank), size_(size), device_(c10::cuda::current_device()) {
    ncclUniqueId unique;
    TORCH_CHECK(id.size() == sizeof(unique.internal), "NCCL: expected an id of ",
                sizeof(unique.internal), " bytes, got ", id.size());
    std::memcpy(unique.internal, id.data(), id.size());
    ncclCheck(ncclCommInitRank(&comm_, size, unique, rank), rank_, nullptr);
  }
  ~NcclComm() override {
    // Nothing can be reported from here, and a failed rank ends its process anyway.
    if (comm_ != nullptr) ncclCommDestroy(comm_);
  }
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce_sum(at::Tensor& x) override {
    const auto stream = use(x);
    in_flight_.add("all_reduce_sum", stream, [&] {
      ncclCheck(ncclAllReduce(x.data_ptr(), x.data_ptr(), x.numel(), nccl_type(x.scalar_type()),
                              ncclSum, comm_, stream),
                rank_, comm_);
    });
  }

  void broadcast(at::Tensor& x, int root) override {
    const auto stream = use(x);
    in_flight_.add("broadcast", stream, [&] {
      ncclCheck(
          ncclBroadcast(x.data_ptr(), x.data_ptr(), x.nbytes(), ncclUint8, root, comm_, stream),
          rank_, comm_);
    });
  }

  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    check_pair(out, in, "all_gather");
    use(out);
    const auto stream = use(in);
    in_flight_.add("all_gather", stream, [&] {
      ncclCheck(
          ncclAllGather(in.const_data_ptr(), out.data_ptr(), in.nbytes(), ncclUint8, comm_, stream),
          rank_, comm_);
    });
  }

  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    check_pair(in, out, "reduce_scatter_sum");
    use(out);
    const auto stream = use(in);
    in_flight_.add("reduce_scatter_sum", stream, [&] {
      ncclCheck(ncclReduceScatter(in.const_data_ptr(), out.data_ptr(), out.numel(),
                                  nccl_type(in.scalar_type()), ncclSum, comm_, stream),
                rank_, comm_);
    });
  }

  void send(const at::Tensor& x, int to) override {
    const auto stream = use(x);
    in_flight_.add("send", stream, [&] {
      ncclCheck(ncclSend(x.const_data_ptr(), x.nbytes(), ncclUint8, to, comm_, stream), rank_,
                comm_);
    });
  }

  void receive(at::Tensor& x, int from) override {
    const auto stream = use(x);
    in_flight_.add("receive", stream, [&] {
      ncclCheck(ncclRecv(x.data_ptr(), x.nbytes(), ncclUint8, from, comm_, stream), rank_, comm_);
    });
  }

  CommState state() override {
    const c10::cuda::CUDAGuard device(device_);
    CommState state = in_flight_.state();
    ncclResult_t result = ncclSuccess;
    if (ncclCommGetAsyncError(comm_, &result) == ncclSuccess && result != ncclSuccess &&
        result != ncclInProgress) {
      state.error = std::string("NCCL: ") + ncclGetErrorString(result);
      if (state.operation.empty()) state.operation = "a collective";
    }
    return state;
  }

 private:
  // Checks the tensor and keeps its memory until the current stream has passed this point.
  cudaStream_t use(const at::Tensor& x) const {
    TORCH_CHECK(x.is_cuda() && x.device().index() == device_ && x.is_contiguous(),
                "NCCL: expected a contiguous tensor on cuda:", static_cast<int>(device_), ", got ",
                x.device(), ", strides ", x.strides());
    const auto stream = c10::cuda::getCurrentCUDAStream(device_);
    c10::cuda::CUDACachingAllocator::recordStream(x.storage().data_ptr(), stream);
    return stream;
  }

  void check_pair(const at::Tensor& whole, const at::Tensor& part, const char* what) const {
    TORCH_CHECK(whole.numel() == size_ * part.numel() && whole.scalar_type() == part.scalar_type(),
                what, ": expected ", size_, " times ", part.numel(), " elements of ",
                part.scalar_type(), ", got ", whole.numel(), " of ", whole.scalar_type());
  }

  int rank_;
  int size_;
  c10::DeviceIndex device_;
  ncclComm_t comm_ = nullptr;
  InFlight in_flight_;
};

}  // namespace

std::vector<char> nccl_unique_id() {
  ncclUniqueId id;
  ncclCheck(ncclGetUniqueId(&id), 0, nullptr);
  return {id.internal, id.internal + sizeof(id.internal)};
}

std::unique_ptr<Comm> make_nccl_comm(const std::vector<char>& id, int rank, int size) {
  return std::make_unique<NcclComm>(id, rank, size);
}

}  // namespace sala

#endif  // SALA_CUDA
