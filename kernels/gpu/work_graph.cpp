// LibTorch's CUDA graphs: its allocator keeps the captured memory apart.
#include "kernels/gpu/work_graph.h"

#ifdef SALA_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace sala {

#ifdef SALA_CUDA

struct WorkGraph::Impl {
  at::cuda::CUDAGraph graph;
  bool captured = false;
};

WorkGraph::WorkGraph() = default;
WorkGraph::~WorkGraph() = default;

void WorkGraph::capture(at::Device device, const std::function<void()>& work) {
  TORCH_CHECK(device.is_cuda(), "graphs of work: expected a CUDA device, got ", device);
  const c10::cuda::CUDAGuard guard(device);
  impl_ = std::make_unique<Impl>();
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStreamGuard stream(c10::cuda::getStreamFromPool());
  // Other threads (loaders, checkpoints) may go on calling CUDA.
  impl_->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  try {
    work();
  } catch (...) {
    try {
      impl_->graph.capture_end();  // an open capture would spoil every later call of this thread
    } catch (const std::exception&) {  // work's error is the one to tell
    }
    impl_.reset();
    throw;
  }
  impl_->graph.capture_end();
  impl_->captured = true;
}

bool WorkGraph::is_captured() const { return impl_ && impl_->captured; }

void WorkGraph::replay() {
  TORCH_CHECK(is_captured(), "graphs of work: nothing was captured");
  impl_->graph.replay();
}

#else

struct WorkGraph::Impl {};
WorkGraph::WorkGraph() = default;
WorkGraph::~WorkGraph() = default;
void WorkGraph::capture(at::Device, const std::function<void()>&) {
  TORCH_CHECK(false, "graphs of work: this build has no CUDA");
}
bool WorkGraph::is_captured() const { return false; }
void WorkGraph::replay() { TORCH_CHECK(false, "graphs of work: this build has no CUDA"); }

#endif

}  // namespace sala
