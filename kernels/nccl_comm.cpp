// The only door to NCCL. Every call is queued on the current CUDA stream of the tensor's device and
// returns at once; tensors are recorded on that stream, so the caller may let go of them. A send
// and its receive meet on the stream: neighbours must not both send first.

#ifdef SALA_CUDA

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>
#include <unistd.h>

#include <cstring>

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
    ncclCheck(ncclAllReduce(x.data_ptr(), x.data_ptr(), x.numel(), nccl_type(x.scalar_type()),
                            ncclSum, comm_, stream),
              rank_, comm_);
  }

  void broadcast(at::Tensor& x, int root) override {
    const auto stream = use(x);
    ncclCheck(ncclBroadcast(x.data_ptr(), x.data_ptr(), x.nbytes(), ncclUint8, root, comm_, stream),
              rank_, comm_);
  }

  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    check_pair(out, in, "all_gather");
    use(out);
    const auto stream = use(in);
    ncclCheck(
        ncclAllGather(in.const_data_ptr(), out.data_ptr(), in.nbytes(), ncclUint8, comm_, stream),
        rank_, comm_);
  }

  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    check_pair(in, out, "reduce_scatter_sum");
    use(out);
    const auto stream = use(in);
    ncclCheck(ncclReduceScatter(in.const_data_ptr(), out.data_ptr(), out.numel(),
                                nccl_type(in.scalar_type()), ncclSum, comm_, stream),
              rank_, comm_);
  }

  void send(const at::Tensor& x, int to) override {
    const auto stream = use(x);
    ncclCheck(ncclSend(x.const_data_ptr(), x.nbytes(), ncclUint8, to, comm_, stream), rank_, comm_);
  }

  void receive(at::Tensor& x, int from) override {
    const auto stream = use(x);
    ncclCheck(ncclRecv(x.data_ptr(), x.nbytes(), ncclUint8, from, comm_, stream), rank_, comm_);
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
