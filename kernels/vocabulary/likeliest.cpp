// The loop over chunks behind kernels/vocabulary/likeliest.h.
#include "kernels/vocabulary/likeliest.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/vocabulary/chunks.h"

namespace sala {

at::Tensor likeliest_ids(const at::Tensor& x, const at::Tensor& w) {
  const at::NoGradGuard no_grad;
  check_input(x, 2, "likeliest_ids", "x");
  check_input(w, 2, "likeliest_ids", "w");
  check_like(w, x, "likeliest_ids", "w");
  const int64_t T = x.size(0), chunk = vocab_chunk_tokens(w, T);
  at::Tensor ids = at::empty({T}, x.options().dtype(at::kLong));
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t count = std::min(chunk, T - begin);
    ids.narrow(0, begin, count).copy_(chunk_logits(x.narrow(0, begin, count), w).argmax(1));
  }
  return ids;
}

}  // namespace sala
