// The only door to MPI: start-up, host-side agreement, and the collectives of CPU ranks. Longer
// than our usual file because MPI has only this door.
//
// Sums are made here, not by MPI_Allreduce: elements travel with MPI_Alltoall and are added in the
// order of the ranks. So a sum does not depend on message size, algorithm, or MPI library: repeated
// runs are bit-equal, and reduce_scatter_sum gives exactly the slices of all_reduce_sum.
#include "trainer/world.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <mpi.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>

#include "trainer/ranks/activity.h"
#include "trainer/ranks/environment.h"
#include "trainer/ranks/launch_guard.h"
#include "trainer/ranks/watchdog.h"

#ifdef SALA_CUDA
#include <ATen/cuda/CUDAContext.h>
#endif

namespace sala {
namespace {

constexpr int64_t kChunkElements = int64_t{1} << 20;  // per MPI call; counts are int there
constexpr int64_t kChunkBytes = int64_t{1} << 24;
constexpr int kTag = 7;

// MPI's own text of an error, with the operation of ours that met it. Every call that returns is
// progress for the watchdog.
void check(int code, const char* call, const char* operation) {
  Activity::here().moves();
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + " failed in " + operation + ": " + text);
}

// Starts MPI at the first World of the process and ends it when the process exits: MPI cannot be
// started twice.
struct Library {
  Library(int* argc, char*** argv) {
    // Without a launcher Open MPI would start a daemon for one process.
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    // Containers often forbid reading another process's memory; shared memory is fast enough.
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    // A rank that waits gives way to our other threads (OpenMP, prefetch).
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    // A rank whose launcher was killed would wait for ever in its next collective, holding the run
    // folder.
    if (std::getenv("OMPI_COMM_WORLD_SIZE")) prctl(PR_SET_PDEATHSIG, SIGKILL);
    int provided = 0;
    const LaunchGuard guard("the start of MPI");
    check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread",
          "start-up");
  }
  ~Library() {
    const LaunchGuard guard("the end of MPI");
    MPI_Finalize();
  }
};

// A committed MPI type that is freed at the end of the scope.
class Type {
 public:
  // `count` elements whose next instance starts `stride` elements later.
  Type(int64_t count, int64_t stride, MPI_Datatype element, int64_t element_bytes) {
    MPI_Datatype block = MPI_DATATYPE_NULL;
    const char* const what = "describing a block of elements";
    check(MPI_Type_contiguous(static_cast<int>(count), element, &block), "MPI_Type_contiguous",
          what);
    check(MPI_Type_create_resized(block, 0, stride * element_bytes, &type_),
          "MPI_Type_create_resized", what);
    MPI_Type_free(&block);
    check(MPI_Type_commit(&type_), "MPI_Type_commit", what);
  }
  Type(const Type&) = delete;
  Type& operator=(const Type&) = delete;
  ~Type() { MPI_Type_free(&type_); }
  operator MPI_Datatype() const { return type_; }  // NOLINT: a type is what it is

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

void check_cpu_tensor(const at::Tensor& x, const char* operation) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous(), operation,
              " over MPI expects a contiguous CPU tensor, got ", x.toString(), " on ", x.device(),
              x.is_contiguous() ? "" : ", not contiguous");
}

char* bytes_of(const at::Tensor& x) { return static_cast<char*>(x.data_ptr()); }

void broadcast_bytes(char* bytes, int64_t num_bytes, int root, MPI_Comm comm,
                     const char* operation) {
  for (int64_t at = 0; at < num_bytes; at += kChunkBytes) {
    const auto count = static_cast<int>(std::min(kChunkBytes, num_bytes - at));
    check(MPI_Bcast(bytes + at, count, MPI_BYTE, root, comm), "MPI_Bcast", operation);
  }
}

template <class T>
MPI_Datatype mpi_type();
template <>
MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
MPI_Datatype mpi_type<int64_t>() {
  return MPI_INT64_T;
}

// out[i] = sum over ranks r, in this order, of parts[r * count + i].
template <class T>
void sum_in_rank_order(const T* parts, int64_t count, int num_ranks, T* out) {
  std::copy(parts, parts + count, out);
  for (int r = 1; r < num_ranks; ++r) {
    const T* part = parts + r * count;
    for (int64_t i = 0; i < count; ++i) out[i] += part[i];
  }
}

class MpiComm final : public Comm {
 public:
  MpiComm(MPI_Comm comm, int rank, int size) : comm_(comm), rank_(rank), size_(size) {}
  ~MpiComm() override { reap(true); }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce_sum(at::Tensor& x) override {
    const Doing doing("all_reduce_sum", Doing::kWait);
    check_cpu_tensor(x, "all_reduce_sum");
    dispatch(x, "all_reduce_sum", [&](auto zero) { all_reduce<decltype(zero)>(x); });
  }

  void broadcast(at::Tensor& x, int root) override {
    const Doing doing("broadcast", Doing::kWait);
    check_cpu_tensor(x, "broadcast");
    broadcast_bytes(bytes_of(x), x.nbytes(), root, comm_, "broadcast");
  }

  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    const Doing doing("all_gather", Doing::kWait);
    check_cpu_tensor(out, "all_gather");
    check_cpu_tensor(in, "all_gather");
    TORCH_CHECK(out.numel() == in.numel() * size_ && out.scalar_type() == in.scalar_type(),
                "all_gather expects out to hold ", size_, " x ", in.numel(), " elements of ",
                in.toString(), ", got ", out.numel(), " of ", out.toString());
    const auto share = static_cast<int64_t>(in.nbytes());
    for (int64_t at = 0; at < share; at += kChunkBytes) {
      const int64_t count = std::min(kChunkBytes, share - at);
      const Type strided(count, share, MPI_BYTE, 1);
      check(MPI_Allgather(bytes_of(in) + at, static_cast<int>(count), MPI_BYTE, bytes_of(out) + at,
                          1, strided, comm_),
            "MPI_Allgather", "all_gather");
    }
  }

  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    const Doing doing("reduce_scatter_sum", Doing::kWait);
    check_cpu_tensor(out, "reduce_scatter_sum");
    check_cpu_tensor(in, "reduce_scatter_sum");
    TORCH_CHECK(in.numel() == out.numel() * size_ && out.scalar_type() == in.scalar_type(),
                "reduce_scatter_sum expects in to hold ", size_, " x ", out.numel(),
                " elements of ", out.toString(), ", got ", in.numel(), " of ", in.toString());
    dispatch(out, "reduce_scatter_sum",
             [&](auto zero) { reduce_scatter<decltype(zero)>(out, in); });
  }

  // Never blocks on the receiver: neighbours in a ring may all send first and then receive.
  void send(const at::Tensor& x, int to) override {
    check_cpu_tensor(x, "send");
    reap(false);
    const at::Tensor copy = x.clone();
    for (int64_t at = 0; at < static_cast<int64_t>(copy.nbytes()); at += kChunkBytes) {
      const auto count = static_cast<int>(std::min<int64_t>(kChunkBytes, copy.nbytes() - at));
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Isend(bytes_of(copy) + at, count, MPI_BYTE, to, kTag, comm_, &request), "MPI_Isend",
            "send");
      in_flight_.push_back({copy, request});
    }
  }

  void receive(at::Tensor& x, int from) override {
    const Doing doing("receive", Doing::kWait);
    check_cpu_tensor(x, "receive");
    for (int64_t at = 0; at < static_cast<int64_t>(x.nbytes()); at += kChunkBytes) {
      const auto count = static_cast<int>(std::min<int64_t>(kChunkBytes, x.nbytes() - at));
      check(MPI_Recv(bytes_of(x) + at, count, MPI_BYTE, from, kTag, comm_, MPI_STATUS_IGNORE),
            "MPI_Recv", "receive");
    }
    reap(false);
  }

 private:
  template <class Work>
  static void dispatch(const at::Tensor& x, const char* operation, const Work& work) {
    switch (x.scalar_type()) {
      case at::kFloat:
        return work(float{});
      case at::kDouble:
        return work(double{});
      case at::kLong:
        return work(int64_t{});
      default:
        TORCH_CHECK(false, operation, " over MPI sums fp32, fp64 and int64, got ", x.toString());
    }
  }

  // In chunks: each rank sums an even share of the chunk, then all gather the sums.
  template <class T>
  void all_reduce(at::Tensor& x) {
    T* const values = x.data_ptr<T>();
    std::vector<int> send_counts(size_), send_starts(size_), counts(size_), starts(size_);
    std::vector<T> parts;
    for (int64_t at = 0; at < x.numel(); at += kChunkElements) {
      const int64_t chunk = std::min(kChunkElements, x.numel() - at);
      const auto first = [&](int64_t r) { return static_cast<int>(chunk * r / size_); };
      const int mine = first(rank_ + 1) - first(rank_);
      for (int r = 0; r < size_; ++r) {
        send_starts[r] = first(r);
        send_counts[r] = first(r + 1) - first(r);
        starts[r] = mine * r;
        counts[r] = mine;
      }
      parts.resize(static_cast<size_t>(mine) * size_);
      check(MPI_Alltoallv(values + at, send_counts.data(), send_starts.data(), mpi_type<T>(),
                          parts.data(), counts.data(), starts.data(), mpi_type<T>(), comm_),
            "MPI_Alltoallv", "all_reduce_sum");
      if (mine > 0) sum_in_rank_order(parts.data(), mine, size_, values + at + first(rank_));
      check(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values + at, send_counts.data(),
                           send_starts.data(), mpi_type<T>(), comm_),
            "MPI_Allgatherv", "all_reduce_sum");
    }
  }

  template <class T>
  void reduce_scatter(at::Tensor& out, const at::Tensor& in) {
    const int64_t share = out.numel();
    std::vector<T> parts;
    for (int64_t at = 0; at < share; at += kChunkElements) {
      const int64_t count = std::min(kChunkElements, share - at);
      const Type strided(count, share, mpi_type<T>(), sizeof(T));
      parts.resize(static_cast<size_t>(count) * size_);
      check(MPI_Alltoall(in.data_ptr<T>() + at, 1, strided, parts.data(), static_cast<int>(count),
                         mpi_type<T>(), comm_),
            "MPI_Alltoall", "reduce_scatter_sum");
      sum_in_rank_order(parts.data(), count, size_, out.data_ptr<T>() + at);
    }
  }

  // Lets go of sends that are through; `all` waits for them.
  void reap(bool all) {
    while (!in_flight_.empty()) {
      int done = 1;
      if (all) {
        MPI_Wait(&in_flight_.front().request, MPI_STATUS_IGNORE);
      } else {
        check(MPI_Test(&in_flight_.front().request, &done, MPI_STATUS_IGNORE), "MPI_Test", "send");
      }
      if (!done) return;
      in_flight_.pop_front();
    }
  }

  struct Sending {
    at::Tensor data;
    MPI_Request request;
  };
  MPI_Comm comm_;
  int rank_, size_;
  std::deque<Sending> in_flight_;
};

// What one exception says, on one line: LibTorch's own adds a backtrace.
std::string message_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error ? torch_error->what_without_backtrace() : error.what();
}

}  // namespace

struct World::Impl {
  MPI_Comm comm = MPI_COMM_NULL, node = MPI_COMM_NULL;
  int rank = 0, size = 1, local_rank = 0, local_size = 1;
  std::string host = host_name();
  at::Device device = at::kCPU;
  std::unique_ptr<Comm> collectives;
  std::mutex collectives_mutex;
  std::unique_ptr<Watchdog> watchdog;  // null: one rank, switched off, or no network for it

  ~Impl() {
    watchdog.reset();
    collectives.reset();
    if (node != MPI_COMM_NULL) MPI_Comm_free(&node);
    if (comm != MPI_COMM_NULL) MPI_Comm_free(&comm);
  }

  // The watchdog's thread looks at the collectives while this one makes them.
  void set_collectives(std::unique_ptr<Comm> comm) {
    const std::lock_guard lock(collectives_mutex);
    collectives = std::move(comm);
  }

  void add_device_state(ActivityReport& report) {
    const std::lock_guard lock(collectives_mutex);
    if (!collectives) return;
    const CommState state = collectives->state();
    report.error = state.error;
    report.count = state.num_done;
    if (state.operation.empty()) return;
    report.operation = state.operation + " on the device";
    report.waits_for_ranks = true;
  }

  void join() {
    check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", "start-up");
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    check(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node),
          "MPI_Comm_split_type", "start-up");
    MPI_Comm_rank(node, &local_rank);
    MPI_Comm_size(node, &local_size);
  }

  // Cores that the launcher left to this node's ranks, shared evenly. Before any parallel region:
  // threads that start later inherit the flushing of denormals.
  void share_cores() {
    at::globalContext().setFlushDenormal(true);
    if (std::getenv("OMP_NUM_THREADS")) return;
    cpu_set_t mine;
    CPU_ZERO(&mine);
    sched_getaffinity(0, sizeof mine, &mine);
    cpu_set_t together = mine;
    check(MPI_Allreduce(&mine, &together, sizeof mine, MPI_BYTE, MPI_BOR, node), "MPI_Allreduce",
          "sharing the cores");
    const int usable = CPU_COUNT(&together);
    // The same on all ranks, whatever their nodes have: a norm's order of summing follows from it.
    int threads = std::max(1, usable / local_size);
    check(MPI_Allreduce(MPI_IN_PLACE, &threads, 1, MPI_INT, MPI_MIN, comm), "MPI_Allreduce",
          "sharing the cores");
    at::set_num_threads(threads);
    // mpirun itself is never bound: what it may use is what --bind-to none would give.
    cpu_set_t launcher;
    CPU_ZERO(&launcher);
    const bool launched = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
    if (launched && local_rank == 0 && device.is_cpu() &&
        sched_getaffinity(getppid(), sizeof launcher, &launcher) == 0 &&
        CPU_COUNT(&launcher) > usable) {
      spdlog::warn("{}: mpirun bound {} rank(s) to {} of {} cores; --bind-to none frees the others",
                   host, local_size, usable, CPU_COUNT(&launcher));
    }
  }

  // Ranks that see the same GPUs share them out by local rank; Slurm may show each only its own.
  int choose_gpu(int num_gpus) {
    std::string visible;
#ifdef SALA_CUDA
    for (int i = 0; i < num_gpus; ++i) {
      visible.append(at::cuda::getDeviceProperties(i)->uuid.bytes, 16);
    }
#endif
    const uint64_t mine = std::hash<std::string>()(visible);
    std::vector<uint64_t> all(local_size);
    check(MPI_Allgather(&mine, 1, MPI_UINT64_T, all.data(), 1, MPI_UINT64_T, node), "MPI_Allgather",
          "sharing the GPUs");
    const auto sharing = std::count(all.begin(), all.end(), mine);
    if (sharing > num_gpus) {
      throw std::runtime_error(std::to_string(sharing) + " ranks on this node, but " +
                               std::to_string(num_gpus) +
                               " GPU(s); NCCL needs one GPU per rank: start " +
                               std::to_string(num_gpus) + " (mpirun -np) or set device: cpu");
    }
    return static_cast<int>(std::count(all.begin(), all.begin() + local_rank, mine));
  }

  void choose_device(const std::string& wanted) {
    TORCH_CHECK(wanted == "auto" || wanted == "cpu" || wanted == "cuda",
                "device: expected auto, cpu or cuda, got ", wanted);
    if (wanted == "cpu") return;
    const int num_gpus =
        at::hasCUDA() ? static_cast<int>(at::detail::getCUDAHooks().deviceCount()) : 0;
    int least = num_gpus;
    check(MPI_Allreduce(&num_gpus, &least, 1, MPI_INT, MPI_MIN, comm), "MPI_Allreduce",
          "choosing the device");
    if (least == 0 && wanted == "cuda") {
      throw std::runtime_error("device: cuda, but this program sees " + std::to_string(num_gpus) +
                               " GPU(s) here and none on some node (was it built with CUDA? does "
                               "nvidia-smi list them?); or set device: cpu");
    }
    if (least == 0) return;
    device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(choose_gpu(num_gpus)));
    c10::impl::getDeviceGuardImpl(at::kCUDA)->setDevice(device);
  }
};

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));  // then come its builder and his machine
}

World::World(int* argc, char*** argv) : impl_(std::make_unique<Impl>()) {
  static Library library(argc, argv);
  double timeout = 0;
  {
    const LaunchGuard guard("the start of the ranks");
    impl_->join();
    const std::string problem = launcher_problem(impl_->size);
    if (!problem.empty()) throw SharedError(problem);
    together("", [&] { timeout = watchdog_timeout(); });
    timeout = std::stod(broadcast(std::to_string(timeout)));  // one for all
  }
  if (impl_->size > 1 && timeout > 0) start_watchdog(timeout);
}

World::World(int* argc, char*** argv, const std::string& device) : World(argc, argv) {
  use_device(device);
}

void World::start_watchdog(double timeout) {
  auto watchdog = std::make_unique<Watchdog>(rank(), size(), host(), timeout);
  try {
    std::string where;
    together("", [&] {
      if (rank() == 0) where = watchdog->listen(/*one_host=*/local_size() == size());
    });
    where = broadcast(where);
    together("", [&] {
      if (rank() != 0) watchdog->connect(where);
    });
  } catch (const SharedError& error) {
    if (rank() == 0) {
      spdlog::warn("no watchdog, a stuck rank will not be noticed: {}", error.what());
    }
    return;
  }
  watchdog->start([impl = impl_.get()](ActivityReport& report) { impl->add_device_state(report); });
  impl_->watchdog = std::move(watchdog);
}

void World::use_device(const std::string& wanted) {
  together("start-up", [&] { impl_->choose_device(wanted); });
  impl_->share_cores();
  if (impl_->size == 1) {
    impl_->set_collectives(make_single_comm());
  } else if (impl_->device.is_cpu()) {
    impl_->set_collectives(std::make_unique<MpiComm>(impl_->comm, impl_->rank, impl_->size));
  } else {
#ifdef SALA_CUDA
    std::string id;
    if (impl_->rank == 0) {
      const std::vector<char> fresh = nccl_unique_id();
      id.assign(fresh.begin(), fresh.end());
    }
    id = broadcast(id);
    const Doing doing("the start of NCCL", Doing::kWork);  // minutes on many nodes
    impl_->set_collectives(make_nccl_comm({id.begin(), id.end()}, impl_->rank, impl_->size));
#endif
  }
}

World::~World() = default;

int World::rank() const { return impl_->rank; }
int World::size() const { return impl_->size; }
int World::local_rank() const { return impl_->local_rank; }
int World::local_size() const { return impl_->local_size; }
std::string World::host() const { return impl_->host; }
at::Device World::device() const { return impl_->device; }
at::ScalarType World::compute_dtype() const {
  return impl_->device.is_cuda() ? at::kBFloat16 : at::kFloat;
}
Comm& World::comm() { return *impl_->collectives; }

void World::now_at(const std::string& stage, int64_t step) { Activity::here().at(stage, step); }

void World::barrier() {
  const Doing doing("barrier", Doing::kWait);
  check(MPI_Barrier(impl_->comm), "MPI_Barrier", "barrier");
}

bool World::any(bool flag) {
  const Doing doing("agreeing with the other ranks", Doing::kWait);
  const int mine = flag ? 1 : 0;
  int result = mine;
  check(MPI_Allreduce(&mine, &result, 1, MPI_INT, MPI_MAX, impl_->comm), "MPI_Allreduce", "any");
  return result != 0;
}

int64_t World::sum(int64_t x) {
  const Doing doing("sum of a number", Doing::kWait);
  int64_t result = x;
  check(MPI_Allreduce(&x, &result, 1, MPI_INT64_T, MPI_SUM, impl_->comm), "MPI_Allreduce", "sum");
  return result;
}

double World::max(double x) {
  const Doing doing("maximum of a number", Doing::kWait);
  double result = x;
  check(MPI_Allreduce(&x, &result, 1, MPI_DOUBLE, MPI_MAX, impl_->comm), "MPI_Allreduce", "max");
  return result;
}

std::string World::broadcast(const std::string& text, int root) {
  const Doing doing("broadcast of a text", Doing::kWait);
  auto num_bytes = static_cast<int64_t>(text.size());
  check(MPI_Bcast(&num_bytes, 1, MPI_INT64_T, root, impl_->comm), "MPI_Bcast", "broadcast");
  std::string result = text;
  result.resize(static_cast<size_t>(num_bytes));
  broadcast_bytes(result.data(), num_bytes, root, impl_->comm, "broadcast");
  return result;
}

std::vector<std::string> World::gather(const std::string& text) {
  std::vector<std::string> all(static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    all[static_cast<size_t>(r)] = broadcast(r == rank() ? text : "", r);
  }
  return all;
}

void World::together(const std::string& what, const std::function<void()>& work) {
  std::string error;
  try {
    const Doing doing(what.empty() ? "start-up" : what, Doing::kWork);
    work();
  } catch (const std::exception& caught) {
    error = message_of(caught);
    if (error.empty()) error = "an error without a message";
  }
  if (!any(!error.empty())) return;
  const std::vector<std::string> errors = gather(error);
  const std::vector<std::string> hosts = gather(impl_->host);
  const bool all_the_same = std::all_of(errors.begin(), errors.end(),
                                        [&](const std::string& e) { return e == errors[0]; });
  for (size_t r = 0; r < errors.size(); ++r) {
    if (errors[r].empty()) continue;
    const std::string where =
        all_the_same ? "" : "rank " + std::to_string(r) + " (" + hosts[r] + "): ";
    throw SharedError((what.empty() ? "" : what + ": ") + where + errors[r]);
  }
}

void World::abort(const std::string& why) {
  std::fflush(stdout);
  const std::string who =
      size() == 1 ? "" : "rank " + std::to_string(rank()) + " on " + impl_->host + ": ";
  std::fputs(("sala-train: " + who + why + "\n").c_str(), stderr);
  std::fflush(stderr);
  if (size() > 1) {
    if (impl_->watchdog) impl_->watchdog->end_others();
    MPI_Abort(impl_->comm, 1);
  }
  std::_Exit(1);
}

}  // namespace sala
