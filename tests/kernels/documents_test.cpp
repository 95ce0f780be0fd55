// Document boundaries, and the collectives of one rank.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/collectives.h"
#include "kernels/documents.h"

namespace sala::test {
namespace {

TEST(DocumentsFromStarts, HaveOffsetsLengthsAndTheLongest) {
  const Documents docs = Documents::from_starts({0, 3, 4}, 17, at::kCPU);
  EXPECT_EQ(docs.count(), 3);
  EXPECT_EQ(docs.num_tokens(), 17);
  EXPECT_EQ(docs.longest, 13);
  EXPECT_EQ(docs.length(1), 1);
  EXPECT_TRUE(at::equal(docs.offsets_i32, at::tensor({0, 3, 4, 17}, at::kInt)));
  EXPECT_TRUE(at::equal(docs.tiles_i32, at::tensor({0, 1, 2, 3}, at::kInt)));
  EXPECT_EQ(docs.num_tiles, 3);
  EXPECT_EQ(Documents::from_starts({0, 64}, 193, at::kCPU).num_tiles, 4);
  EXPECT_EQ(Documents::single(1, at::kCPU).longest, 1);
  EXPECT_EQ(Documents{}.num_tokens(), 0);
}

TEST(DocumentsFromStarts, RefuseEmptyDocumentsAndAWrongFirst) {
  EXPECT_THROW(Documents::from_starts({}, 3, at::kCPU), c10::Error);
  EXPECT_THROW(Documents::from_starts({1}, 3, at::kCPU), c10::Error);
  EXPECT_THROW(Documents::from_starts({0, 2, 2}, 3, at::kCPU), c10::Error);
  EXPECT_THROW(Documents::from_starts({0, 3}, 3, at::kCPU), c10::Error);
}

TEST(SingleComm, IsTheIdentity) {
  const auto comm = make_single_comm();
  EXPECT_EQ(comm->size(), 1);
  const at::Tensor x = at::arange(5, at::kFloat);
  at::Tensor y = x.clone(), out = at::zeros({5});
  comm->all_reduce_sum(y);
  comm->broadcast(y, 0);
  EXPECT_TRUE(at::equal(x, y));
  comm->all_gather(out, x);
  EXPECT_TRUE(at::equal(x, out));
  comm->reduce_scatter_sum(out, x * 2);
  EXPECT_TRUE(at::equal(x * 2, out));
  EXPECT_THROW(comm->send(x, 1), c10::Error);
}

}  // namespace
}  // namespace sala::test
