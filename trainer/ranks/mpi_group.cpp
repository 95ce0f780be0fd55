// The only door to MPI. Longer than our usual file because MPI has only this door.
//
// Sums are made here, not by MPI_Allreduce: elements travel with MPI_Alltoall and are added in the
// order of the ranks. So a sum does not depend on message size, algorithm, or MPI library: repeated
// runs are bit-equal, and reduce_scatter_sum gives exactly the slices of all_reduce_sum.
#include "trainer/ranks/mpi_group.h"

#include <mpi.h>
#include <sys/prctl.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <limits>
#include <stdexcept>

#include "trainer/ranks/activity.h"
#include "trainer/ranks/launch_guard.h"

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

// Where the next bytes of texts of these sizes stand when every rank sends up to `most` of them.
struct TextRound {
  std::vector<int> counts, starts;
  std::string bytes;

  TextRound(const std::vector<int64_t>& sizes, int64_t at, int64_t most) {
    int64_t start = 0;
    for (const int64_t size : sizes) {
      starts.push_back(static_cast<int>(start));
      counts.push_back(static_cast<int>(std::clamp<int64_t>(size - at, 0, most)));
      start += counts.back();
    }
    TORCH_CHECK(start <= std::numeric_limits<int>::max(), "a gather of ", start, " bytes at once");
    bytes.resize(static_cast<size_t>(start));
  }
  void append_to(std::vector<std::string>& texts) const {
    for (size_t r = 0; r < texts.size(); ++r) {
      texts[r].append(bytes, static_cast<size_t>(starts[r]), static_cast<size_t>(counts[r]));
    }
  }
};

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
    const bool in_place = bytes_of(in) == bytes_of(out) + rank_ * share;
    for (int64_t at = 0; at < share; at += kChunkBytes) {
      const int64_t count = std::min(kChunkBytes, share - at);
      const Type strided(count, share, MPI_BYTE, 1);
      check(MPI_Allgather(in_place ? MPI_IN_PLACE : bytes_of(in) + at, static_cast<int>(count),
                          MPI_BYTE, bytes_of(out) + at, 1, strided, comm_),
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

}  // namespace

struct MpiGroup::Impl {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1;

  explicit Impl(MPI_Comm owned) : comm(owned) {
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
  }
  ~Impl() { MPI_Comm_free(&comm); }

  template <class T>
  T reduce(T mine, MPI_Datatype type, MPI_Op op, const char* operation) const {
    T result = mine;
    check(MPI_Allreduce(&mine, &result, 1, type, op, comm), "MPI_Allreduce", operation);
    return result;
  }
};

MpiGroup::MpiGroup(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MpiGroup::MpiGroup(MpiGroup&&) noexcept = default;
MpiGroup::~MpiGroup() = default;

MpiGroup MpiGroup::all(int* argc, char*** argv) {
  static Library library(argc, argv);
  const LaunchGuard guard("the start of the ranks");
  MPI_Comm comm = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", "start-up");
  return MpiGroup(std::make_unique<Impl>(comm));
}

MpiGroup MpiGroup::on_one_host() const {
  MPI_Comm comm = MPI_COMM_NULL;
  check(MPI_Comm_split_type(impl_->comm, MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, &comm),
        "MPI_Comm_split_type", "start-up");
  return MpiGroup(std::make_unique<Impl>(comm));
}

MpiGroup MpiGroup::split(int color) const {
  const Doing doing("splitting the ranks into groups", Doing::kWait);
  MPI_Comm comm = MPI_COMM_NULL;
  check(MPI_Comm_split(impl_->comm, color, rank(), &comm), "MPI_Comm_split", "splitting the ranks");
  return MpiGroup(std::make_unique<Impl>(comm));
}

int MpiGroup::rank() const { return impl_->rank; }
int MpiGroup::size() const { return impl_->size; }

void MpiGroup::barrier() const { check(MPI_Barrier(impl_->comm), "MPI_Barrier", "barrier"); }
int64_t MpiGroup::min(int64_t x, const char* operation) const {
  return impl_->reduce(x, MPI_INT64_T, MPI_MIN, operation);
}
int64_t MpiGroup::max(int64_t x, const char* operation) const {
  return impl_->reduce(x, MPI_INT64_T, MPI_MAX, operation);
}

double MpiGroup::max(double x, const char* operation) const {
  return impl_->reduce(x, MPI_DOUBLE, MPI_MAX, operation);
}

void MpiGroup::bitwise_or(void* bytes, int64_t num_bytes, const char* operation) const {
  check(MPI_Allreduce(MPI_IN_PLACE, bytes, static_cast<int>(num_bytes), MPI_BYTE, MPI_BOR,
                      impl_->comm),
        "MPI_Allreduce", operation);
}

std::vector<uint64_t> MpiGroup::gather(uint64_t x, const char* operation) const {
  std::vector<uint64_t> all(static_cast<size_t>(size()));
  check(MPI_Allgather(&x, 1, MPI_UINT64_T, all.data(), 1, MPI_UINT64_T, impl_->comm),
        "MPI_Allgather", operation);
  return all;
}

std::string MpiGroup::broadcast(const std::string& text, int root) const {
  auto num_bytes = static_cast<int64_t>(text.size());
  check(MPI_Bcast(&num_bytes, 1, MPI_INT64_T, root, impl_->comm), "MPI_Bcast", "broadcast");
  std::string result = text;
  result.resize(static_cast<size_t>(num_bytes));
  broadcast_bytes(result.data(), num_bytes, root, impl_->comm, "broadcast");
  return result;
}

// In rounds of kChunkBytes of all ranks together: counts are int.
std::vector<std::string> MpiGroup::gather(const std::string& text, bool on_all) const {
  const auto own = static_cast<int64_t>(text.size());
  std::vector<int64_t> sizes(static_cast<size_t>(size()));
  check(MPI_Allgather(&own, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, impl_->comm),
        "MPI_Allgather", "gather");
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  const int64_t most = std::max<int64_t>(1, kChunkBytes / size());
  const bool takes = on_all || rank() == 0;
  std::vector<std::string> texts(takes ? sizes.size() : 0);
  for (int64_t at = 0; at < longest; at += most) {
    TextRound round(sizes, at, most);
    const char* const mine = text.data() + std::min(at, own);
    const int count = round.counts[static_cast<size_t>(rank())];
    if (on_all) {
      check(MPI_Allgatherv(mine, count, MPI_BYTE, round.bytes.data(), round.counts.data(),
                           round.starts.data(), MPI_BYTE, impl_->comm),
            "MPI_Allgatherv", "gather");
    } else {
      check(MPI_Gatherv(mine, count, MPI_BYTE, round.bytes.data(), round.counts.data(),
                        round.starts.data(), MPI_BYTE, 0, impl_->comm),
            "MPI_Gatherv", "gather");
    }
    if (takes) round.append_to(texts);
  }
  return texts;
}

std::unique_ptr<Comm> MpiGroup::collectives() const {
  return std::make_unique<MpiComm>(impl_->comm, rank(), size());
}

void MpiGroup::abort() const { MPI_Abort(impl_->comm, 1); }

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));  // then come its builder and his machine
}

}  // namespace sala
