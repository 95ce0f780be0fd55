// Types and sums behind trainer/teacher/packed.h.
#include "trainer/teacher/packed.h"

namespace sala {

PackedTopk pack(const TopkTeacher& teacher, const TopkFormat& format) {
  return {teacher.ids.to(format.wide_ids() ? at::kInt : at::kShort),
          teacher.log_p.to(format.half ? at::kHalf : at::kFloat), teacher.log_tail.to(at::kFloat)};
}

TopkTeacher unpack(const PackedTopk& packed) {
  constexpr int64_t kShortBits = 0xffff;
  at::Tensor ids = packed.ids.to(at::kLong);
  if (packed.ids.scalar_type() == at::kShort) ids.bitwise_and_(kShortBits);
  const int64_t k = ids.size(1);
  const at::Tensor all =
      at::cat({packed.log_p.to(at::kFloat), packed.log_tail.unsqueeze(1)}, 1).log_softmax(1);
  return {ids, all.narrow(1, 0, k).contiguous(), all.select(1, k).contiguous()};
}

}  // namespace sala
