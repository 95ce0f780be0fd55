// What storing does to a cut teacher's words: nothing in fp32, a stated bound in fp16.
#include <gtest/gtest.h>

#include <cmath>

#include "trainer/teacher/packed.h"

namespace sala {
namespace {

struct Case {
  at::Tensor x, w, weight;
  TopkTeacher teacher;
};

Case make_case(int64_t vocab_size, int64_t topk) {
  at::manual_seed(11);
  const at::Tensor x = at::randn({23, 6}), w = at::randn({vocab_size, 6});
  return {x, w, at::ones({23}), linear_topk(at::randn({23, 6}), w, 1.0, 1.0, topk)};
}

VocabLoss loss_of(const Case& c, const TopkTeacher& teacher) {
  return linear_topk_kl(c.x, c.w, 1.0, teacher, {}, c.weight, {});
}

}  // namespace

TEST(PackedTopk, KeepsEveryIdAndIsADistribution) {
  for (int64_t vocab_size : {300, 65536, 65537, 70000}) {
    const Case c = make_case(vocab_size, 12);
    for (bool half : {true, false}) {
      const PackedTopk packed = pack(c.teacher, {12, vocab_size, half, ""});
      EXPECT_EQ(packed.ids.scalar_type(), vocab_size > 65536 ? at::kInt : at::kShort);
      const TopkTeacher read = unpack(packed);
      EXPECT_TRUE(at::equal(read.ids, c.teacher.ids)) << vocab_size;
      const at::Tensor mass = read.log_p.exp().sum(1) + read.log_tail.exp();
      EXPECT_LT((mass - 1).abs().max().item<double>(), 1e-6);
    }
  }
  // All bits of u16, which int16 holds as negative numbers.
  const at::Tensor ids = at::tensor({0, 32767, 32768, 65535}, at::kLong).view({1, 4});
  const TopkTeacher far{ids, at::full({1, 4}, -2.0), at::zeros({1})};
  EXPECT_TRUE(at::equal(unpack(pack(far, {4, 65536, true, ""})).ids, ids));
}

TEST(PackedTopk, StoredTwiceIsStoredOnce) {
  const Case c = make_case(500, 16);
  for (bool half : {true, false}) {
    const PackedTopk once = pack(c.teacher, {16, 500, half, ""});
    const TopkTeacher a = unpack(once),
                      b = unpack({once.ids.clone(), once.log_p.clone(), once.log_tail.clone()});
    EXPECT_TRUE(at::equal(a.log_p, b.log_p));
    EXPECT_TRUE(at::equal(a.log_tail, b.log_tail));
  }
}

// Rounding moves each log-probability by at most 2^-11 of its size (fp16), and scaling back by as
// much again; dKL / dlog p_i = p_i (log(p_i / q_i) + 1).
TEST(PackedTopk, RoundingMovesTheLossByLessThanItsBound) {
  const Case c = make_case(500, 16);
  const at::Tensor exact = loss_of(c, c.teacher).kl_T;
  const at::Tensor fp32 = loss_of(c, unpack(pack(c.teacher, {16, 500, false, ""}))).kl_T;
  EXPECT_LT((fp32 - exact).abs().max().item<double>(), 1e-5);
  const at::Tensor fp16 = loss_of(c, unpack(pack(c.teacher, {16, 500, true, ""}))).kl_T;
  const at::Tensor log_q = at::log_softmax(at::mm(c.x, c.w.t()), 1).gather(1, c.teacher.ids);
  const at::Tensor& log_p = c.teacher.log_p;
  const at::Tensor slope = log_p.exp() * ((log_p - log_q).abs() + 1);
  const at::Tensor moved = log_p.abs() * std::pow(2.0, -11);
  const at::Tensor largest = std::get<0>(moved.max(1));
  const at::Tensor bound = (slope * moved).sum(1) + largest * (exact + 1);
  EXPECT_TRUE(((fp16 - exact).abs() <= 1.1 * bound + 1e-5).all().item<bool>())
      << (fp16 - exact).abs().max() << bound.min();
  EXPECT_LT((fp16 - exact).abs().max().item<double>(), 5e-3);
}

}  // namespace sala
