// Dense attention of one document in query slabs, for the shapes and types that no flash kernel
// takes: fewer queries than keys on the CPU, fp32 on CUDA. Formulas in dense.cpp.
#pragma once

#include <ATen/ATen.h>

#include "kernels/documents.h"

namespace sala {

struct DenseGradients {
  at::Tensor dq, dk, dv;  // of all documents; shapes of q, k, v
};

// Writes the rows of document `doc` in o (Tq, NH, HS) and lse (NH, Tq).
void dense_slabs_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const Documents& q_docs, const Documents& k_docs, int64_t doc,
                         double scale, at::Tensor& o, at::Tensor& lse);

// Writes the rows of document `doc` in dq, dk and dv. Slabs are summed in order: deterministic.
void dense_slabs_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                          const Documents& q_docs, const Documents& k_docs, int64_t doc,
                          double scale, DenseGradients& out);

}  // namespace sala
