// The tensor door of the op library: every operation the project owns, forward and backward, as
// plain functions on tensors. Shapes, dtypes and devices are checked here once; below this door
// code trusts its inputs. Each op runs on CPU (float, double) and CUDA (float, bfloat16) and has a
// plain-loop twin in kernels/twins/twins.h that defines what it computes; tests compare the two.
//
// Letters: T packed tokens, C width, F feed-forward width, V vocabulary, NH query heads, NKV KV
// heads, HS head size, G = NH / NKV, NB blocks of one document, K chosen blocks per (KV head,
// token). Query head i reads KV head i / G. Contiguous inputs; outputs are freshly allocated.
// "May be columns": rows (all of one token) are contiguous, but may lie apart, as the columns of a
// wider (T, ...) tensor do. Gradients given as `..._out` are written there instead, columns or not.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels/documents.h"

namespace sala {

// ---------------------------------------------------------------- norms and element-wise

// y = cast(x / sqrt(mean(x^2) + eps)) * weight: the statistic in fp32 (double for double), the cast
// to x's dtype before the multiplication, as the Llama and MiniCPM code does.
// x (..., C), weight (C). Returns y (..., C), rstd (...) fp32/fp64.
std::tuple<at::Tensor, at::Tensor> rmsnorm_forward(const at::Tensor& x, const at::Tensor& weight,
                                                   double eps);
// Returns dx (..., C), dweight (C) in fp32 (fp64 for fp64): it is added to such sums.
std::tuple<at::Tensor, at::Tensor> rmsnorm_backward(const at::Tensor& dy, const at::Tensor& x,
                                                    const at::Tensor& weight,
                                                    const at::Tensor& rstd);

// The residual stream and the norm that reads it, in one pass: h = x + residual_scale * y (in fp32,
// then cast to x's dtype), u = rmsnorm(h). x, y (..., C), weight (C). Returns h, u, rstd (...).
std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rmsnorm_forward(const at::Tensor& x,
                                                                   const at::Tensor& y,
                                                                   double residual_scale,
                                                                   const at::Tensor& weight,
                                                                   double eps);
// Returns dx (..., C) = dh + the gradient of h through u, and dweight (C) in fp32/fp64; the
// gradient of y is residual_scale * dx. The kernel rounds dx once, the composition each part of the
// sum as well. `dh` may be undefined: nobody else reads h.
std::tuple<at::Tensor, at::Tensor> add_rmsnorm_backward(const at::Tensor& du, const at::Tensor& dh,
                                                        const at::Tensor& h,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& rstd);

// Per-head RMSNorm over HS (skipped when `weight` is undefined), then rotary embedding (skipped
// when `cos` is undefined): rotate-half layout, fp32 maths. x (T, N, HS), weight (HS), cos and sin
// (T, HS/2) fp32 (fp64 for fp64), any attention factor folded in. x may be columns. Returns y
// (T, N, HS), rstd (T, N) (undefined without a weight).
std::tuple<at::Tensor, at::Tensor> qk_norm_rope_forward(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& cos,
                                                        const at::Tensor& sin, double eps);
// Returns dx, dweight in fp32/fp64 (undefined without a weight).
std::tuple<at::Tensor, at::Tensor> qk_norm_rope_backward(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
    const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& dx_out = {});

// y = silu(gate) * up. All (T, F); gate and up may be columns.
at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up);
std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                   const at::Tensor& up,
                                                   const at::Tensor& d_gate_out = {},
                                                   const at::Tensor& d_up_out = {});

// y = rmsnorm(o; weight) * sigmoid(z); without a weight: y = o * sigmoid(z). o, z (T, C); z may be
// columns.
// Returns y, rstd (T) (undefined without a weight).
std::tuple<at::Tensor, at::Tensor> gated_norm_forward(const at::Tensor& o, const at::Tensor& z,
                                                      const at::Tensor& weight, double eps);
// Returns do, dz, dweight in fp32/fp64 (undefined without a weight).
std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_norm_backward(
    const at::Tensor& dy, const at::Tensor& o, const at::Tensor& z, const at::Tensor& weight,
    const at::Tensor& rstd, const at::Tensor& dz_out = {});

// ---------------------------------------------------------------- softmax attention, dense

// Causal attention within each document. q (Tq, NH, HS), k and v (Tk, NKV, HS). The queries of a
// document are its last tokens: q_docs and k_docs have equally many documents, and query i of a
// document with nq queries and nk keys sees keys 0 .. nk - nq + i (all of training has nq = nk).
// CUDA bf16: the variable-length flash kernel, or cuDNN under rules that let results differ from
// call to call (kernels/paths.h) for rows as below; CPU and fp32: query slabs per document, so
// memory stays O(slab * nk). Returns o (Tq, NH, HS), lse (NH, Tq) fp32/fp64.
std::tuple<at::Tensor, at::Tensor> dense_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v,
                                                           const Documents& q_docs,
                                                           const Documents& k_docs, double scale);
// o alone, for a pass that no backward follows (teachers, evaluation): CUDA bf16 takes cuDNN where
// all documents have one length of 2K tokens or more, a multiple of 1K, and flash elsewhere.
// Not for a forward that is computed again with a backward: the two differ by rounding.
at::Tensor dense_attention_output(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const Documents& q_docs, const Documents& k_docs, double scale);
// Returns dq, dk, dv; the same bits at every call, unless the rules let them differ.
std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_attention_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const Documents& q_docs, const Documents& k_docs,
    double scale);

// ---------------------------------------------------------------- block-sparse attention

// InfLLM-V2 selection (arXiv:2509.24663; MiniCPM-SALA's config keys of the same names).
struct SparseConfig {
  int64_t kernel_size = 32;    // tokens averaged into one compressed key
  int64_t kernel_stride = 16;  // tokens between two compressed keys
  int64_t init_blocks = 1;     // leading blocks always attended
  int64_t block_size = 64;     // tokens in a block = 4 * kernel_stride
  int64_t window_size = 2048;  // local window, tokens: window_size / block_size + 1 forced blocks
  int64_t topk = 64;           // blocks chosen beyond the local window
  int64_t dense_len = 8192;    // documents shorter than this are attended densely

  int64_t local_blocks() const { return window_size / block_size; }
  int64_t blocks_per_token() const { return topk + local_blocks(); }  // K
};

// Block lists of every query: (NKV, Tq, K) int32, block numbers within the query's document,
// ascending, padded with -1 at the end. A compressed window is visible iff its last token is <= t;
// scores are summed over the G heads with the softmax normaliser from the 4x coarser windows;
// block score = max over the windows that touch it; forced: init_blocks and the local_blocks + 1
// blocks up to the query's own; ties go to the lower block. No gradient. Compressed keys are means
// in fp32 kept in k's type, scores fp32 (fp64 for fp64). bf16 on Hopper with HS 64 or 128 and G up
// to 16: the kernels of kernels/selection/launch.h, whose lists are the same bits at every call,
// whatever slab, row or piece of a document a query comes in; elsewhere a composition of LibTorch
// ops. Memory: works in query slabs.
at::Tensor block_select(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                        const Documents& k_docs, const SparseConfig& config, double scale);

// Attention over the listed blocks, causal inside. Shapes as dense_attention, blocks as above; the
// order within a list changes rounding only. bf16 on CUDA with HS 64 or 128, G up to 16, blocks of
// 64 and a positive scale: the kernels of kernels/attention/block_sparse_launch.h, the same bits at
// every call, where a query that listed nothing gets zeros; elsewhere a composition of LibTorch
// ops.
std::tuple<at::Tensor, at::Tensor> block_sparse_attention_forward(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& blocks,
    const Documents& q_docs, const Documents& k_docs, int64_t block_size, double scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const at::Tensor& blocks, const Documents& q_docs,
    const Documents& k_docs, int64_t block_size, double scale);

// ---------------------------------------------------------------- lightning attention

// Per-head slopes s_h > 0 of the decay exp(-s_h): 2^(-8(h+1)/NH), ALiBi's rule for head counts that
// are no power of two. CPU double tensor (NH).
at::Tensor lightning_slopes(int64_t num_heads);

// o_t = scale * S_t^T q_t, S_t = exp(-s) S_{t-1} + k_t v_t^T, per head, state zero at the start of
// each document but the first d for which `initial_state` (d, NH, HS, HS) is given (d = 1 for a
// line that is split over ranks). q, k, v (T, NH, HS); slopes (NH) fp64 on the CPU. State and its
// gradient in fp32 (fp64 for fp64); chunked; only non-positive exponents. Returns o (T, NH, HS),
// final_state (D, NH, HS, HS) fp32/fp64 (undefined where it is not wanted: it is as large as 64 KB
// per document and head). bf16 on CUDA with HS 64 or 128: the kernels of
// kernels/lightning/launch.h, the same bits at every call; one-token documents on CUDA: one kernel;
// elsewhere a composition of LibTorch ops. Any T, any number of heads, finite slopes >= 0, scale
// not 0. A value that is not finite stays in its document, where it also reaches up to 63 tokens
// before its own.
std::tuple<at::Tensor, at::Tensor> lightning_forward(const at::Tensor& q, const at::Tensor& k,
                                                     const at::Tensor& v, const at::Tensor& slopes,
                                                     const Documents& docs, double scale,
                                                     const at::Tensor& initial_state = {},
                                                     bool want_final_state = true);
// `d_final_state` (d, NH, HS, HS) of the last d documents, or undefined. Returns dq, dk, dv, and
// d_initial_state of the shape of `initial_state`, undefined where none was given. Recomputes
// states from k and v; saves nothing else.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale,
    const at::Tensor& initial_state = {}, const at::Tensor& d_final_state = {});

// What a run of tokens adds to the state after it, without o: the sum over t in [first_token, T) of
// exp(-s (T - 1 - t)) k_t v_t^T. k, v (T, NH, HS) -> (NH, HS, HS) fp32/fp64. A sequence that is
// split over ranks needs this of the document that goes on, before any rank can run
// lightning_forward. Each head's sum ends where its decay falls below e^-60, so fast heads cost
// little; otherwise 2 HS^2 flops a token and head. Composed of LibTorch ops; the same bits at every
// call.
at::Tensor lightning_end_state(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes,
                               int64_t first_token);
// Its mirror: the gradient that a run of tokens sends to the state that it began with, d_o alone
// counted: the sum over t in [0, end_token) of scale * exp(-s (t + 1)) q_t d_o_t^T. It equals
// lightning_backward's d_initial_state of a document of end_token tokens without d_final_state.
at::Tensor lightning_start_gradient(const at::Tensor& q, const at::Tensor& d_o,
                                    const at::Tensor& slopes, int64_t end_token, double scale);

// ---------------------------------------------------------------- losses over the vocabulary

struct VocabLoss {
  at::Tensor loss_T;    // (T) fp32/fp64: loss of each token before weights; always filled
  at::Tensor kl_T;      // (T) the KL part (linear_kl only)
  at::Tensor ce_T;      // (T) the next-token part (linear_kl with targets given; else undefined)
  at::Tensor loss_sum;  // fp64 scalar on the device of x: sum of weight * loss
};

// Cross-entropy of logits = x W^T * logit_scale against targets, in chunks of tokens: no (T, V)
// tensor exists. x (T, C), w (V, C), targets (T) int64, weight (T) fp32 (0 = ignored). A target
// outside the vocabulary is an error on the CPU; on CUDA, where the host never waits, its loss is
// NaN (ids are checked where rows are read).
// Where `dx` is given: dx (T, C) in x's dtype = d(sum weight * loss)/dx, and d_w (V, C) fp32/fp64
// += the weight gradient (skipped when d_w is undefined).
VocabLoss linear_cross_entropy(const at::Tensor& x, const at::Tensor& w, const at::Tensor& targets,
                               const at::Tensor& weight, double logit_scale,
                               at::Tensor* dx = nullptr, const at::Tensor& d_w = {});

struct DistillConfig {
  double temperature = 1.0;  // KL between softened distributions, times temperature^2
  double ce_weight = 0.0;    // loss = (1 - ce_weight) * KL + ce_weight * cross-entropy
  at::Tensor ce_weight_T{};  // (T) floating-point, of each token: instead of ce_weight

  bool wants_ce() const { return ce_weight > 0 || ce_weight_T.defined(); }
};

// KL(teacher || student) over the full vocabulary, chunked likewise. Teacher: x_teacher (T, Ct),
// w_teacher (V, Ct). `targets` may be undefined where the config wants no cross-entropy. Shares
// outside [0, 1] are an error; those of tokens are looked at on the CPU alone.
VocabLoss linear_kl(const at::Tensor& x, const at::Tensor& w, double logit_scale,
                    const at::Tensor& x_teacher, const at::Tensor& w_teacher,
                    double teacher_logit_scale, const at::Tensor& targets, const at::Tensor& weight,
                    const DistillConfig& config, at::Tensor* dx = nullptr,
                    const at::Tensor& d_w = {});

// ---------------------------------------------------------------- optimizer

// Decoupled weight decay Adam (Loshchilov & Hutter 2019) over a flat range; all fp32, in place:
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + lr * decay * w
// with g = grad * grad_scale. `copy` (same count, bf16 or fp32), when defined, receives cast(w).
struct AdamW {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  double grad_scale = 1;  // clipping and loss normalisation
  int64_t step = 1;       // t, counts from 1
};
void adamw_step(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad,
                at::Tensor copy, const AdamW& options);

// Elements [begin, begin + count) of a flat range that train with equal settings.
struct AdamWSegment {
  int64_t begin = 0, count = 0;
  double lr_scale = 1;      // times AdamW::lr
  double weight_decay = 0;  // instead of AdamW::weight_decay
};
// The same for the segments alone, which do not overlap; one launch for up to 32 of them.
void adamw_step(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad,
                at::Tensor copy, const AdamW& options, const std::vector<AdamWSegment>& segments);

}  // namespace sala
