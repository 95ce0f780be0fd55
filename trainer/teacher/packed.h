// A cut teacher's words as they are stored: few bytes a token, and the same bits whether a step was
// there when they were made or read them later.
#pragma once

#include <ATen/ATen.h>

#include "data/teacher/part.h"
#include "kernels/topk.h"

namespace sala {

// Columns of TopkTokens (data/teacher/part.h), on the teacher's device.
struct PackedTopk {
  at::Tensor ids;       // (T, k) int16, int32: the bits of u16, u32
  at::Tensor log_p;     // (T, k) fp16, fp32
  at::Tensor log_tail;  // (T) fp32
};

// Rounds fp32 log-probabilities to the format's type: with fp16 to 2^-11 of their size.
PackedTopk pack(const TopkTeacher& teacher, const TopkFormat& format);
// Scaled to probability one again, which rounding has moved; fp32.
TopkTeacher unpack(const PackedTopk& packed);

}  // namespace sala
