// What `matmul: fp8` says: which products run in FP8, in --check and in words.
#include "trainer/planning/matmul.h"

#include <gtest/gtest.h>

#include <sstream>

#include "tests/trainer/preflight_cases.h"

namespace sala {
namespace {

using namespace recipe_cases;

ModelConfig hybrid_of_8b() {
  ModelConfig c;
  c.family = "minicpm_sala";
  c.num_layers = 2;
  c.width = 4096;
  c.ffn_width = 16384;
  c.num_heads = 32;
  c.num_kv_heads = 2;
  c.lightning_kv_heads = 32;
  c.head_size = 128;
  c.mixers = {Mixer::kSparse, Mixer::kLightning};
  return c;
}

TEST(MatmulText, NamesProductsOfEveryMixer) {
  EXPECT_EQ(matmul_text(hybrid_of_8b(), 8192, Matmul{}), "");
  EXPECT_EQ(matmul_text(hybrid_of_8b(), 8192, Matmul{2048}),
            "in FP8, forward and gradients of inputs: q|k|v|z (4096 to 8704, sparse), o (4096 to "
            "4096), gate|up (4096 to 32768), down (16384 to 4096), q|k|v|z (4096 to 16384, "
            "lightning); weight gradients and everything else are not");
  const std::string all = matmul_text(hybrid_of_8b(), 8192, Matmul{2048, true});
  EXPECT_EQ(all.find("in FP8, forward and gradients of inputs and weights: q|k|v|z (4096"), 0u)
      << all;
  EXPECT_NE(all.find("lightning); everything else is not"), std::string::npos) << all;
}

TEST(MatmulText, SaysWhatStaysAndWhy) {
  ModelConfig c = hybrid_of_8b();
  c.width = 576;
  c.ffn_width = 1544;
  c.mixers = {Mixer::kFull, Mixer::kFull};
  const std::string small = matmul_text(c, 8192, Matmul{2048});
  EXPECT_NE(small.find("inputs: nothing; not: q|k|v (576 to 4608; 576 inputs are fewer than "
                       "fp8_from 2048), "),
            std::string::npos)
      << small;
  EXPECT_NE(
      matmul_text(hybrid_of_8b(), 65536, Matmul{32768}, 16384)
          .find("gate|up (4096 to 32768; 16384 tokens at once are fewer than fp8_from 32768)"),
      std::string::npos)
      << "in tiles";
  EXPECT_NE(matmul_text(c, 1024, Matmul{2048}).find("1024 tokens at once are fewer than"),
            std::string::npos);
  EXPECT_NE(matmul_text(c, 1024, Matmul{16}).find("down (1544 to 576; 1544 inputs are no multiple"),
            std::string::npos);
}

TEST(MatmulText, CheckPrintsIt) {
  const TemporaryFolder folder;
  write_toy(folder);
  const auto output = [&](const std::vector<std::string>& overrides) {
    const auto recipe = read_toy(folder, kToyRecipe, overrides);
    std::ostringstream out;
    EXPECT_EQ(check_recipe(*recipe, check_device(recipe->run), 1, out), 0) << out.str();
    return out.str();
  };
  const std::string fp8 = output(
      {"stages.distill.matmul=fp8", "stages.distill.fp8_from=64", "stages.train.matmul=fp8_all"});
  EXPECT_NE(fp8.find("stage distill: in FP8, forward and gradients of inputs: q|k|v|z"),
            std::string::npos)
      << fp8;
  EXPECT_NE(
      fp8.find("stage train: in FP8, forward and gradients of inputs and weights: nothing; not: "),
      std::string::npos)
      << fp8;
  EXPECT_EQ(output({}).find("FP8, forward"), std::string::npos);
}

TEST(MatmulText, BadValuesGetOneLine) {
  const TemporaryFolder folder;
  EXPECT_NE(complaint(folder, kGood, {"stages.distill.matmul=fp4"}).find("bf16, fp8, fp8_all"),
            std::string::npos);
  EXPECT_NE(complaint(folder, kGood, {"stages.train.fp8_from=0"}).find("fp8_from"),
            std::string::npos);
  EXPECT_NE(complaint(folder, kGood, {"stages.align.matmul=fp8"}).find("unknown key"),
            std::string::npos);
}

}  // namespace
}  // namespace sala
