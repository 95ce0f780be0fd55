// cuBLASLt's matrices are stored by columns, so the transpose is asked for: sum^T (N, M) += b a^T,
// with its A our b and its B our a, both K first: the one order ("TN") that FP8 has on Hopper.
//
// Outer vector scales with D in fp32 and beta = 1 are documented for compute capability 9.0, from
// cuBLAS 12.9 on. What a device lacks shows in the search for an algorithm or, as cublasLt.h says
// of scale pointers, only in the call itself, which then has done nothing: both are a no.
#include "kernels/fp8/cublaslt.h"

#ifdef SALA_CUDA

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

namespace sala {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string("FP8 product: ") + call + ": " +
                           cublasLtGetStatusString(status));
}

template <auto Destroy>
struct Destroyer {
  template <typename T>
  void operator()(T* object) const {
    Destroy(object);
  }
};
template <typename Handle, auto Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer<Destroy>>;
using Matmul = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

template <typename Value>
void set(const Matmul& matmul, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  check(cublasLtMatmulDescSetAttribute(matmul.get(), attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}

template <typename Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const Value& value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
        "cublasLtMatmulPreferenceSetAttribute");
}

Matmul matmul_of(const Fp8AddProduct& op) {
  cublasLtMatmulDesc_t created = nullptr;
  check(cublasLtMatmulDescCreate(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescCreate");
  Matmul matmul(created);
  set(matmul, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(matmul, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  set(matmul, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{0});  // exact, as in product.cpp
  const int32_t by_rows = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  set(matmul, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, by_rows);
  set(matmul, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, by_rows);
  set(matmul, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, op.b_scale);
  set(matmul, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, op.a_scale);
  return matmul;
}

Layout layout_of(cudaDataType_t type, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t created = nullptr;
  check(cublasLtMatrixLayoutCreate(&created, type, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), rows),
        "cublasLtMatrixLayoutCreate");
  return Layout(created);
}

struct Call {
  Matmul matmul;
  Layout a, b, sum;

  explicit Call(const Fp8AddProduct& op)
      : matmul(matmul_of(op)),
        a(layout_of(CUDA_R_8F_E4M3, op.K, op.M)),
        b(layout_of(CUDA_R_8F_E4M3, op.K, op.N)),
        sum(layout_of(CUDA_R_32F, op.N, op.M)) {}
};

// The largest power of two up to 256 that divides the address.
uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uint32_t bytes = 256;
  while (address % bytes != 0) bytes /= 2;
  return bytes;
}

using Algorithm = std::optional<cublasLtMatmulAlgo_t>;  // empty: there is none

Algorithm find_algorithm(cublasLtHandle_t handle, const Fp8AddProduct& op, const Call& call) {
  cublasLtMatmulPreference_t created = nullptr;
  check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
  const Preference preference(created);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      static_cast<uint64_t>(op.workspace_bytes));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(op.b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(op.a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(op.sum));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(op.sum));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, call.matmul.get(), call.b.get(), call.a.get(), call.sum.get(), call.sum.get(),
      preference.get(), 1, &found, &count);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) return {};
  return found.algo;
}

// Device, sizes and alignments: all that an algorithm depends on.
using Key = std::tuple<int, int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t>;

struct State {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> handles;  // of devices; live as long as the program
  std::map<Key, Algorithm> algorithms;
};

State& state() {
  static State& state = *new State;  // never destroyed: CUDA may be gone before
  return state;
}

cublasLtHandle_t handle_of(State& s, int device) {
  cublasLtHandle_t& handle = s.handles[device];
  if (handle == nullptr) check(cublasLtCreate(&handle), "cublasLtCreate");
  return handle;
}

cublasStatus_t run(cublasLtHandle_t handle, const Fp8AddProduct& op, const Call& call,
                   const cublasLtMatmulAlgo_t& algorithm, CUstream_st* stream) {
  const float one = 1;
  return cublasLtMatmul(handle, call.matmul.get(), &one, op.b, call.b.get(), op.a, call.a.get(),
                        &one, op.sum, call.sum.get(), op.sum, call.sum.get(), &algorithm,
                        op.workspace, op.workspace_bytes, stream);
}

bool is_refusal(cublasStatus_t status) {
  return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
         status == CUBLAS_STATUS_ARCH_MISMATCH;
}

}  // namespace

bool add_fp8_product(const Fp8AddProduct& op, CUstream_st* stream) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const cublasLtHandle_t handle = handle_of(s, device);
  const Call call(op);
  const Key key{device, op.M, op.N, op.K, alignment(op.a), alignment(op.b), alignment(op.sum)};
  auto known = s.algorithms.find(key);
  const bool first = known == s.algorithms.end();
  if (first) known = s.algorithms.emplace(key, find_algorithm(handle, op, call)).first;
  Algorithm& algorithm = known->second;
  if (!algorithm) return false;
  const cublasStatus_t status = run(handle, op, call, *algorithm, stream);
  if (first && is_refusal(status)) {
    algorithm.reset();
    return false;
  }
  check(status, "cublasLtMatmul");
  return true;
}

}  // namespace sala

#endif
