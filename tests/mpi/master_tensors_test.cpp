// Masters by name, in any order, however they are held.
#include "trainer/folder/master_tensors.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "model/weights/parts.h"
#include "tests/mpi/test_world.h"

namespace sala {

namespace {

std::vector<LayoutPtr> twelve_layers() {
  ModelConfig c;
  c.family = "llama";
  c.num_layers = 12;
  c.width = 16;
  c.ffn_width = 24;
  c.vocab_size = 20;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_size = 8;
  c.tied_head = false;  // lm_head comes first by name and last by part
  c.mixers.assign(c.num_layers, Mixer::kFull);
  std::vector<LayoutPtr> layouts;
  for (const Layout& layout : model_layouts(c)) {
    layouts.push_back(std::make_shared<const Layout>(layout));
  }
  return layouts;
}

}  // namespace

class MasterTensorsOnRanks : public testing::TestWithParam<Sharding> {};

TEST_P(MasterTensorsOnRanks, AreWhatWasPutThereInAnyOrder) {
  World& world = test_world();
  Parameters::Options options;
  options.sharding = GetParam();
  options.trains = true;
  const std::vector<LayoutPtr> layouts = twelve_layers();
  Parameters parameters(layouts, options, {&world.gather_comm(), &world.reduce_comm()});
  std::vector<std::pair<std::string, at::Tensor>> expected;  // exact in bf16
  for (size_t p = 0; p < layouts.size(); ++p) {
    Weights part(layouts[p], at::kFloat, at::kCPU);
    part.flat.copy_((at::arange(part.flat.numel()) + static_cast<int64_t>(17 * p)) % 251);
    for (size_t i = 0; i < part.views().size(); ++i) {
      expected.emplace_back(layouts[p]->entries[i].name, part.views()[i]);
    }
    parameters.set_whole(p, part.flat);
  }
  std::sort(expected.begin(), expected.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  MasterTensors masters(parameters, world.rank() == 0);
  if (world.rank() != 0) return;
  for (const auto& [name, values] : expected) {
    EXPECT_TRUE(at::equal(masters.tensor(name).to(at::kFloat), values)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, MasterTensorsOnRanks,
                         testing::Values(Sharding::kNone, Sharding::kZero1, Sharding::kZero3),
                         [](const auto& test) {
                           return test.param == Sharding::kNone    ? "none"
                                  : test.param == Sharding::kZero1 ? "zero1"
                                                                   : "zero3";
                         });

}  // namespace sala
