// Raw-pointer launchers of the kernels of lightning attention and of its decode step. No
// torch here: nvcc reads it. Everything is ordered on `stream` and nothing blocks; results are
// cudaError_t.
//
// Work is cut into tiles of up to 64 tokens of one document. The tiles of all heads, head after
// head, form one line; a line of N tiles is cut into `num_ranges` equal ranges, one per block of
// threads, so that any length, head count and packing fills the chip. A range that begins inside a
// document needs the state that the tokens before it leave. end_states gives what each range alone
// contributes at its border, over no more tokens than the decay lets through (exp(-slope distance)
// > 2^-25); the kernel that needs a state adds the contributions of the ranges before it until the
// decay or the document ends. For slow decays this is the exact sum over all of them (with few
// heads and slopes near zero every range reads the states of all before it); no atomics, and no
// order between blocks.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace sala {

constexpr int kLightningMaxHeads = 512;
constexpr int kLightningTileTokens = 64;

struct LightningLine {
  const int* offsets;  // (D + 1) first token of each document, device
  const int* tiles;    // (D + 1) tiles before each document, device
  int num_docs, num_tiles, num_heads, num_ranges;
  int64_t num_tokens;
  float scale;
  float rate[kLightningMaxHeads];  // slope of each head times log2(e)
};

// Which kernels this device and this build have: wgmma and the copy engine on compute
// capability 9.0 where the build has sm_90a code, mma.sync on every other device from 8.0 on.
enum class LightningArch { kNone, kAmpere, kHopper };
LightningArch lightning_arch();  // of the current device

constexpr int lightning_blocks_per_sm(int64_t head_size) { return head_size == 64 ? 2 : 1; }

// Ranges that fill the device, for `num_tiles` tiles of all heads of size 64 or 128.
int lightning_num_ranges(int64_t num_tiles, int64_t head_size);

// a, b (T, NH, HS) bf16, HS 64 or 128. out (num_ranges - 1, kLightningParts, HS, HS) fp32: at each
// border between two ranges of one document the sum over tokens t of the range
//   left of it:   exp(-slope (border - 1 - t)) a_t b_t^T    (from_right = false)
//   right of it:  exp(-slope (t - border + 1)) a_t b_t^T    (from_right = true)
// in up to kLightningParts summands, made by as many blocks. Borders at document starts, and
// summands that the border does not need, are not written.
constexpr int kLightningParts = 4;
int launch_lightning_end_states(const void* a, const void* b, float* out, int64_t head_size,
                                bool from_right, const LightningLine& line, CUstream_st* stream);

struct LightningStates {
  const float* borders = nullptr;  // of end_states; may be null when num_ranges is 1
  const float* given = nullptr;    // (num_given, NH, HS, HS): initial (or d_final) states of
  int first_given = 0;             // this document and the next ones; zero for others
  int num_given = 0;
  bool given_transposed = false;
  float* leaving = nullptr;  // (num_leaving, NH, HS, HS) out: final (or d_initial) states of the
  int num_leaving = 0;       // first documents
};

// o (T, NH, HS) bf16 = lightning attention of q, k, v.
int launch_lightning_forward(const void* q, const void* k, const void* v, void* o,
                             const LightningStates& states, int64_t head_size,
                             const LightningLine& line, CUstream_st* stream);

// dk, dv (T, NH, HS) bf16. `borders` from the right, of (q, d_o); given = d_final_state,
// leaving = d_initial_state. dq is the forward of (d_o, v, k).
int launch_lightning_backward(const void* q, const void* k, const void* v, const void* d_o,
                              void* dk, void* dv, const LightningStates& states, int64_t head_size,
                              const LightningLine& line, CUstream_st* stream);

constexpr int kLightningStepMaxHeadSize = 256;

struct LightningDecays {
  float values[kLightningMaxHeads];  // exp(-slope) of each head
};

// One token of each of D sequences: next = exp(-slope) state + k v^T, o = scale * next^T q.
// q, k, v, o (D, NH, HS) bf16 or fp32; state, next (D, NH, HS, HS) fp32; state may be null
// (zero). HS a multiple of 4. Memory-bound on the state: 8 HS^2 bytes per
// head.
int launch_lightning_step(const void* q, const void* k, const void* v, const float* state, void* o,
                          float* next, bool is_bf16, int64_t num_docs, int64_t num_heads,
                          int64_t head_size, float scale, const LightningDecays& decays,
                          CUstream_st* stream);

}  // namespace sala
