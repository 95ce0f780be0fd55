// How many buffers serve parts that are whole only while they are in use.
#include "trainer/sharding/pool.h"

#include <gtest/gtest.h>

namespace sala {

TEST(PoolOfBuffers, NeighboursShareAsFewAsTheyCan) {
  // A hybrid of 9.5B parameters in millions: embedding, blocks, a lightning and a sparse mixer,
  // head.
  const std::vector<int64_t> sizes = {301, 201, 84, 201, 52, 201, 84, 301};
  const std::vector<std::vector<size_t>> units = {{0}, {1, 2}, {3, 4}, {5, 6}, {7}};
  const Pool pool = plan_pool(sizes, units, false);
  EXPECT_EQ(pool.num_elements(), 2 * 301 + 84 + 52);
  for (const size_t part : {1, 3, 5, 7}) EXPECT_EQ(pool.class_of[part], pool.class_of[0]);
  EXPECT_EQ(pool.class_of[2], pool.class_of[6]);
  EXPECT_NE(pool.class_of[2], pool.class_of[4]);
}

TEST(PoolOfBuffers, APartThatTwoUnitsUseIsHeldBetweenThem) {
  const std::vector<int64_t> sizes = {301, 201, 201, 201, 1};
  const std::vector<std::vector<size_t>> units = {{0}, {1}, {2}, {3}, {4, 0}};
  EXPECT_EQ(plan_pool(sizes, units, true).num_elements(), 301 + 2 * 201);
  EXPECT_EQ(plan_pool(sizes, units, false).num_elements(), 2 * 301 + 1);
}

TEST(PoolOfBuffers, PartsWithoutAUnitOrASizeAreNoTrouble) {
  const Pool pool = plan_pool({0, 64, 64}, {}, true);
  EXPECT_EQ(pool.class_of, (std::vector<int64_t>{-1, 0, 0}));
  EXPECT_EQ(pool.num_elements(), 2 * 64);
  EXPECT_EQ(plan_pool({}, {}, false).num_elements(), 0);
}

}  // namespace sala
