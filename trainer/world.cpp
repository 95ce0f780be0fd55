// The ranks of a run: start-up, the device, communicators, agreement on the host.
#include "trainer/world.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "trainer/ranks/activity.h"
#include "trainer/ranks/device_info.h"
#include "trainer/ranks/environment.h"
#include "trainer/ranks/launch_guard.h"
#include "trainer/ranks/mpi_group.h"
#include "trainer/ranks/watchdog.h"

#ifdef SALA_CUDA
#include <ATen/cuda/CUDAContext.h>
#endif

namespace sala {
namespace {

// What one exception says, on one line: LibTorch's own adds a backtrace.
std::string message_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error ? torch_error->what_without_backtrace() : error.what();
}

}  // namespace

struct World::Impl {
  // Destroyed from below: the watchdog first, then communicators, then what they stand on.
  MpiGroup all, node;
  std::map<int, MpiGroup> sequences;  // by degree: the ranks that share a sequence with this one
  std::deque<MpiGroup> shard_groups;
  std::string host = host_name();
  at::Device device = at::kCPU;
  // Every communicator with collectives on tensors, for the watchdog's thread, which looks at them
  // while this one makes more. `what` they carry is told of one that hangs.
  struct Carrier {
    std::unique_ptr<Comm> comm;
    std::string what;
  };
  std::deque<Carrier> carriers;
  std::mutex carriers_mutex;
  Comm *comm = nullptr, *gather = nullptr, *reduce = nullptr;
  std::map<int, Comm*> sequence_comms;           // by degree
  std::map<int, World::ShardComms> shard_comms;  // by ranks of a group
  std::unique_ptr<Watchdog> watchdog;  // null: one rank, switched off, or no network for it

  Impl(int* argc, char*** argv) : all(MpiGroup::all(argc, argv)), node(all.on_one_host()) {}

  // A communicator for collectives on this device between the ranks of `group`.
  Comm* make_comm(const MpiGroup& group, const std::string& what) {
    std::unique_ptr<Comm> made;
    if (group.size() == 1) {
      made = make_single_comm();
    } else if (device.is_cpu()) {
      made = group.collectives();
    } else {
#ifdef SALA_CUDA
      std::string id;
      if (group.rank() == 0) {
        const std::vector<char> fresh = nccl_unique_id();
        id.assign(fresh.begin(), fresh.end());
      }
      id = group.broadcast(id);
      const Doing doing("the start of NCCL", Doing::kWork);  // minutes on many nodes
      made = make_nccl_comm({id.begin(), id.end()}, group.rank(), group.size());
#endif
    }
    const std::lock_guard lock(carriers_mutex);
    carriers.push_back({std::move(made), what});
    return carriers.back().comm.get();
  }

  // One of its own on GPUs. MPI on CPU ranks does one thing after the other anyway.
  Comm& own_comm(Comm*& kept, const std::string& what) {
    if (kept == nullptr) kept = all.size() == 1 || device.is_cpu() ? comm : make_comm(all, what);
    return *kept;
  }

  void add_device_state(ActivityReport& report) {
    const std::lock_guard lock(carriers_mutex);
    for (const Carrier& carrier : carriers) {
      const CommState state = carrier.comm->state();
      report.count += state.num_done;
      const bool tells = report.error.empty() && !state.error.empty();
      if (tells) report.error = state.error;
      if (state.operation.empty() || (report.waits_for_ranks && !tells)) continue;
      report.operation = state.operation + carrier.what + " on the device";
      report.waits_for_ranks = true;
    }
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
    node.bitwise_or(&together, sizeof together, "sharing the cores");
    const int usable = CPU_COUNT(&together);
    // The same on all ranks, whatever their nodes have: a norm's order of summing follows from it.
    at::set_num_threads(
        static_cast<int>(all.min(std::max(1, usable / node.size()), "sharing the cores")));
    // mpirun itself is never bound: what it may use is what --bind-to none would give.
    cpu_set_t launcher;
    CPU_ZERO(&launcher);
    const bool launched = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
    if (launched && node.rank() == 0 && device.is_cpu() &&
        sched_getaffinity(getppid(), sizeof launcher, &launcher) == 0 &&
        CPU_COUNT(&launcher) > usable) {
      spdlog::warn("{}: mpirun bound {} rank(s) to {} of {} cores; --bind-to none frees the others",
                   host, node.size(), usable, CPU_COUNT(&launcher));
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
    const std::vector<uint64_t> seen = node.gather(mine, "sharing the GPUs");
    const auto sharing = std::count(seen.begin(), seen.end(), mine);
    if (sharing > num_gpus) {
      throw std::runtime_error(std::to_string(sharing) + " ranks on this node, but " +
                               std::to_string(num_gpus) +
                               " GPU(s); NCCL needs one GPU per rank: start " +
                               std::to_string(num_gpus) + " (mpirun -np) or set device: cpu");
    }
    return static_cast<int>(std::count(seen.begin(), seen.begin() + node.rank(), mine));
  }

  void choose_device(const std::string& wanted) {
    TORCH_CHECK(wanted == "auto" || wanted == "cpu" || wanted == "cuda",
                "device: expected auto, cpu or cuda, got ", wanted);
    if (wanted == "cpu") return;
    configure_device_memory();
    const int num_gpus =
        at::hasCUDA() ? static_cast<int>(at::detail::getCUDAHooks().deviceCount()) : 0;
    const int64_t least = all.min(num_gpus, "choosing the device");
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

World::World(int* argc, char*** argv) : impl_(std::make_unique<Impl>(argc, argv)) {
  double timeout = 0, stuck = 0;
  {
    const LaunchGuard guard("the start of the ranks");
    const std::string problem = launcher_problem(size());
    if (!problem.empty()) throw SharedError(problem);
    together("", [&] {
      timeout = watchdog_timeout();
      stuck = stuck_timeout();  // rank 0 looks for it alone
    });
    timeout = std::stod(broadcast(std::to_string(timeout)));  // one for all
  }
  if (size() > 1 && timeout > 0) start_watchdog(timeout, stuck);
}

World::World(int* argc, char*** argv, const std::string& device) : World(argc, argv) {
  use_device(device);
}

void World::start_watchdog(double timeout, double stuck) {
  auto watchdog = std::make_unique<Watchdog>(rank(), size(), host(), timeout, stuck);
  try {
    std::string where;
    together("", [&] {
      if (rank() == 0) where = watchdog->listen(/*one_host=*/local_size() == size());
    });
    where = broadcast(where);
    together("", [&] { rank() == 0 ? watchdog->take_in() : watchdog->connect(where); });
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
  impl_->comm = impl_->make_comm(impl_->all, "");
}

World::~World() = default;

int World::rank() const { return impl_->all.rank(); }
int World::size() const { return impl_->all.size(); }
int World::local_rank() const { return impl_->node.rank(); }
int World::local_size() const { return impl_->node.size(); }
std::string World::host() const { return impl_->host; }
at::Device World::device() const { return impl_->device; }
at::ScalarType World::compute_dtype() const {
  return impl_->device.is_cuda() ? at::kBFloat16 : at::kFloat;
}

Comm& World::comm() { return *impl_->comm; }
Comm& World::gather_comm() { return impl_->own_comm(impl_->gather, " of weights"); }
Comm& World::reduce_comm() { return impl_->own_comm(impl_->reduce, " of gradients"); }

World::ShardComms World::shard_comms(int ranks) {
  if (ranks == 0 || ranks == size()) return {&gather_comm(), &reduce_comm(), nullptr};
  TORCH_CHECK(ranks > 0 && size() % ranks == 0, "shard_ranks ", ranks, " does not divide the ",
              size(), " rank(s)");
  auto [at, fresh] = impl_->shard_comms.try_emplace(ranks);
  if (!fresh) return at->second;
  MpiGroup& group = impl_->shard_groups.emplace_back(impl_->all.split(rank() / ranks));
  MpiGroup& copies = impl_->shard_groups.emplace_back(impl_->all.split(rank() % ranks));
  ShardComms& comms = at->second;
  comms.gather = impl_->make_comm(group, " of weights");
  // MPI on CPU ranks does one thing after the other anyway.
  comms.reduce = device().is_cpu() ? comms.gather : impl_->make_comm(group, " of gradients");
  comms.copies = impl_->make_comm(copies, " of gradients between copies of the model");
  return comms;
}

Comm* World::sequence_comm(int context) {
  TORCH_CHECK(context >= 1 && size() % context == 0, "context ", context, " does not divide the ",
              size(), " rank(s): as many as share a sequence must fit in a whole number of times");
  if (context == 1) return nullptr;
  Comm*& comm = impl_->sequence_comms[context];
  if (comm != nullptr) return comm;
  const MpiGroup& group =
      impl_->sequences.emplace(context, impl_->all.split(rank() / context)).first->second;
  comm = impl_->make_comm(group, " along a sequence");
  return comm;
}

void World::now_at(const std::string& stage, int64_t step) { Activity::here().at(stage, step); }

void World::barrier() {
  const Doing doing("barrier", Doing::kWait);
  impl_->all.barrier();
}

bool World::any(bool flag) {
  const Doing doing("agreeing with the other ranks", Doing::kWait);
  return impl_->all.max(int64_t{flag}, "any") != 0;
}

double World::max(double x) {
  const Doing doing("agreeing with the other ranks", Doing::kWait);
  return impl_->all.max(x, "max");
}

std::string World::broadcast(const std::string& text, int root) {
  const Doing doing("broadcast of a text", Doing::kWait);
  return impl_->all.broadcast(text, root);
}

std::vector<std::string> World::gather(const std::string& text) {
  const Doing doing("gathering texts", Doing::kWait);
  return impl_->all.gather(text, /*on_all=*/true);
}

std::vector<std::string> World::gather_first(const std::string& text) {
  const Doing doing("gathering texts", Doing::kWait);
  return impl_->all.gather(text, /*on_all=*/false);
}

void World::together(const std::string& what, const std::function<void()>& work) {
  std::string error;
  try {
    const Doing doing(what.empty() ? "start-up" : what, Doing::kWork);
    work();
  } catch (const SharedError& shared) {  // all ranks have it, of a call inside `work`: none asks
    throw SharedError((what.empty() ? "" : what + ": ") + shared.what());
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
    impl_->all.abort();
  }
  std::_Exit(1);
}

}  // namespace sala
