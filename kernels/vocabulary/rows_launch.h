// Raw-pointer launcher of the row kernel under the losses over the vocabulary (rows.cu): the
// losses of rows of logits, and the gradient at them. No torch here: nvcc reads it.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

// n rows of V numbers, contiguous. Pointers may be null where it says so.
struct VocabRowPointers {
  const float* logits;          // (n, V): x W^T, before any scale
  const float* teacher_logits;  // (n, V) likewise; null: next-token loss alone, temperature 1
  const int64_t* targets;       // (n); null: no next-token part, ce_share is 0
  const float* weight;          // (n)
  const float* ce_share;        // (n): instead of the factors' shares; null: those
  float* loss;                  // (n): kl_share * kl + ce_share * ce, before weights
  float* kl;                    // (n); null: not wanted
  float* ce;                    // (n); null: not wanted
  void* d_logits;               // (n, V): d(sum weight * loss)/d logits; null: not wanted
  bool bf16_gradient;           // d_logits is bf16, otherwise fp32
};

// The constants of one loss, formed on the host in double and rounded once.
struct VocabRowFactors {
  float student, teacher;  // log2(e) * logit scale / temperature: 2^(factor * logit) is the softmax
  float temperature;
  float kl_share, ce_share;
  float logit_scale;  // the student's
};

// Ordered on `stream`, never blocks, no workspace, equal bits from run to run. A target outside
// [0, V) makes its row's losses NaN and reads nothing. Returns the launch's cudaError_t.
int vocab_rows_cuda(const VocabRowPointers& rows, const VocabRowFactors& factors, int64_t num_rows,
                    int64_t V, CUstream_st* stream);

}  // namespace sala
