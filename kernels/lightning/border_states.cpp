// Sums of outer products towards a border, composed of LibTorch ops: pieces of tokens from the
// border outwards, each one batched product over the heads that still reach that far.

#include "kernels/lightning/border_states.h"

#include <algorithm>

#include "kernels/batched_gemm.h"
#include "kernels/check.h"
#include "kernels/lightning/plan.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

constexpr int64_t kPieceCpu = 512;
constexpr int64_t kPieceCuda = 4096;

// The heads [first, first + count) outside which nothing at this distance counts any more. Slopes
// fall from head to head but for counts that are no power of two, so the range is nearly tight.
struct HeadRange {
  int64_t first = 0, count = 0;
};

HeadRange heads_that_reach(const at::Tensor& slopes, double distance) {
  const double* s = slopes.const_data_ptr<double>();
  int64_t first = slopes.size(0), last = -1;
  for (int64_t h = 0; h < slopes.size(0); ++h) {
    if (s[h] * distance > kDeadExponent) continue;
    first = std::min(first, h);
    last = h;
  }
  return last < 0 ? HeadRange{} : HeadRange{first, last - first + 1};
}

}  // namespace

at::Tensor lightning_border_sum(const at::Tensor& a, const at::Tensor& b, const at::Tensor& slopes,
                                LightningBorder border) {
  const int64_t n = a.size(0), NH = a.size(1), HS = a.size(2);
  const at::ScalarType wide = accumulate_type(a);
  const int64_t most = a.is_cuda() ? kPieceCuda : kPieceCpu;
  const bool after = border == LightningBorder::kAfter;
  const at::Tensor rates = queue_to(slopes, a.device());
  at::Tensor sum = at::zeros({NH, HS, HS}, a.options().dtype(wide));
  for (int64_t done = 0; done < n; done += most) {
    const int64_t piece = std::min(most, n - done);
    const int64_t nearest = done + (after ? 0 : 1);
    const HeadRange heads = heads_that_reach(slopes, static_cast<double>(nearest));
    if (heads.count == 0) break;
    const auto part = [&](const at::Tensor& x) {
      return x.narrow(0, after ? n - done - piece : done, piece)
          .narrow(1, heads.first, heads.count);
    };
    at::Tensor distance = at::arange(nearest, nearest + piece, rates.options());
    if (after) distance = distance.flip(0);
    const at::Tensor weight =  // (heads, piece)
        decay_weights(rates.narrow(0, heads.first, heads.count), distance, wide);
    const at::Tensor weighted = (part(a) * weight.t().unsqueeze(-1)).to(a.scalar_type());
    at::Tensor heads_sum = sum.narrow(0, heads.first, heads.count);
    add_bmm_wide(heads_sum, weighted.permute({1, 2, 0}), part(b).transpose(0, 1));
  }
  return sum;
}

}  // namespace sala
