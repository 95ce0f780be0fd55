// sala-bench as users run it, small and on the CPU: every op has its lines, bad options get one
// line. No time is judged. And that the two mixers that it compares do the same work.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/files/atomic_file.h"
#include "model/rope.h"
#include "tests/kernels/tolerance.h"
#include "tests/model/differentiable_ops.h"
#include "tests/trainer/checkpoint_state.h"
#include "tests/trainer/drawn_lists.h"
#include "trainer/bench/bench.h"
#include "trainer/bench/composition.h"
#include "trainer/bench/op.h"
#include "trainer/bench/report.h"

namespace sala {
namespace {

struct Output {
  std::string text;  // both streams
  int code = -1;
};

Output run_program(const std::string& arguments) {
  Output output;
  const std::string command = SALA_BIN_DIR "/sala-bench --device cpu " + arguments + " 2>&1";
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return output;
  for (char buffer[4096]; const size_t n = std::fread(buffer, 1, sizeof buffer, pipe);) {
    output.text.append(buffer, n);
  }
  output.code = WEXITSTATUS(pclose(pipe));
  return output;
}

TEST(Bench, EveryOpHasARow) {
  const ScratchFolder folder(::testing::TempDir() + "sala_bench_" + std::to_string(getpid()));
  const std::string file = folder.path + "/bench.json";
  const Output output = run_program(
      "--tokens 129,258 --documents 3 --heads 3 --head-size 64 --width 96 --ffn 160 --vocab 301 "
      "--repeats 1 --json " +
      file);
  ASSERT_EQ(output.code, 0) << output.text;
  const nlohmann::json report = nlohmann::json::parse(read_text_file(file));
  EXPECT_GT(report.at("machine").at("copy_gb_per_s").get<double>(), 0);
  EXPECT_GT(report.at("machine").at("gemm_tflops").get<double>(), 0);
  EXPECT_TRUE(report.at("skipped").empty());
  for (const BenchOp& op : bench_ops()) {
    SCOPED_TRACE(op.name + " " + op.pass);
    EXPECT_NE(output.text.find("\n" + op.name), std::string::npos);
    const auto& rows = report.at("rows");
    const auto count = std::count_if(rows.begin(), rows.end(), [&](const nlohmann::json& row) {
      return row.at("op") == op.name && row.at("pass") == op.pass && row.at("ms") > 0 &&
             row.at("bytes") > 0 && row.contains("flops") == bool(op.flops);
    });
    EXPECT_EQ(count, op.sweep == BenchSweep::kOnce ? 1 : 2);
  }
  for (const nlohmann::json& row : report.at("rows")) {
    if (!row.contains("documents")) continue;
    const nlohmann::json expected = row.at("op") == "decode" ? row.at("tokens") : nlohmann::json(3);
    EXPECT_EQ(row.at("documents"), expected) << row;
  }
}

TEST(Bench, ServingHasARowPerModelBatchAndLength) {
  const ScratchFolder folder(::testing::TempDir() + "sala_serve_" + std::to_string(getpid()));
  const std::string file = folder.path + "/serve.json";
  const Output output = run_program(
      "--serve --tokens 70,200 --batch 1,3 --layers 4 --heads 4 --head-size 16 --width 64 --ffn 96 "
      "--vocab 301 --chunk 64 --steps 2 --json " +
      file);
  ASSERT_EQ(output.code, 0) << output.text;
  const nlohmann::json report = nlohmann::json::parse(read_text_file(file));
  ASSERT_EQ(report.at("rows").size(), 8u);
  size_t i = 0;
  for (const char* model : {"full", "hybrid"}) {
    for (const int64_t batch : {1, 3}) {
      for (const int64_t tokens : {70, 200}) {
        const nlohmann::json& row = report.at("rows").at(i++);
        EXPECT_EQ(row.at("model"), model);
        EXPECT_EQ(row.at("batch"), batch);
        EXPECT_EQ(row.at("tokens"), tokens);
        EXPECT_EQ(row.contains("first_token_s"), batch == 1) << row;
        EXPECT_GT(row.at("decode_tokens_per_s").get<double>(), 0);
      }
    }
  }
  EXPECT_NE(output.text.find("hybrid against full, batch 3, 200 tokens: decode"), std::string::npos)
      << output.text;
  const Output impatient = run_program(
      "--serve --tokens 64,128 --batch 1 --layers 2 --heads 2 --head-size 16 --width 32 --ffn 32 "
      "--vocab 301 --steps 1 --most-seconds 0");
  EXPECT_EQ(impatient.code, 0);
  size_t num_left_out = 0, at = 0;
  while ((at = impatient.text.find("prefill left out", at) + 1) != 0) ++num_left_out;
  EXPECT_EQ(num_left_out, 4u) << impatient.text;  // two models, two lengths
}

TEST(Bench, ListsOfAFileAreMeasuredBesideMadeUpOnes) {
  const ScratchFolder folder(::testing::TempDir() + "sala_bench_lists_" + std::to_string(getpid()));
  const std::string file = folder.path + "/lists.h5", out = folder.path + "/bench.json";
  write_block_lists(file, test::drawn());
  const std::string arguments = "--lists " + file + " --repeats 1 --json " + out;
  for (const auto& [more, shape] : {std::pair{"", "35 + 101 x 6/2 x 32"},
                                    {" --kv-heads 1", "35 + 101 x 3/1 x 32"},
                                    {" --heads 8 --head-size 16", "35 + 101 x 8/2 x 16"}}) {
    SCOPED_TRACE(shape);
    const Output output = run_program(arguments + more);
    ASSERT_EQ(output.code, 0) << output.text;
    const nlohmann::json report = nlohmann::json::parse(read_text_file(out));
    EXPECT_TRUE(report.at("skipped").empty()) << report.at("skipped");
    ASSERT_EQ(report.at("rows").size(), 8u);
    ASSERT_EQ(report.at("lists").size(), 4u);
    size_t i = 0;
    for (const char* op :
         {"trained_layer_2", "trained_layer_10", "sparse_attention", "sparse_random_lists"}) {
      EXPECT_GE(report.at("lists")[i / 2].at("union_4").get<double>(), 1);
      EXPECT_EQ(report.at("lists")[i / 2].at("op"), op);
      for (const char* pass : {"fwd", "bwd"}) {
        const nlohmann::json& row = report.at("rows")[i++];
        EXPECT_EQ(row.at("op"), op);
        EXPECT_EQ(row.at("pass"), pass);
        EXPECT_EQ(row.at("shape"), shape);
      }
    }
    EXPECT_NE(output.text.find("u(16)"), std::string::npos) << output.text;
  }
  for (const auto& [more, expected] :
       {std::pair{" --kv-heads 3", "the file has lists of 2 KV heads"},
        {" --heads 7", "one number of heads that 2 KV heads divide"},
        {" --tokens 4K", "leave out --op, --tokens"}}) {
    const Output output = run_program(arguments + more);
    EXPECT_NE(output.code, 0);
    EXPECT_NE(output.text.find(expected), std::string::npos) << output.text;
  }
}

TEST(Bench, SizesThatAreNotMeasuredAreReported) {
  const ScratchFolder folder(::testing::TempDir() + "sala_bench_out_" + std::to_string(getpid()));
  const std::string file = folder.path + "/bench.json";
  const Output output = run_program(
      "--op dense_attention --tokens 33,64K,1M --heads 1 --head-size 8 --repeats 1 --json " + file);
  ASSERT_EQ(output.code, 0) << output.text;
  const nlohmann::json report = nlohmann::json::parse(read_text_file(file));
  EXPECT_EQ(report.at("rows").size(), 2u);
  ASSERT_EQ(report.at("left_out").size(), 2u);
  for (const nlohmann::json& line : report.at("left_out")) {
    EXPECT_EQ(line.at("op"), "dense_attention");
    EXPECT_EQ(line.at("tokens"), nlohmann::json({64 << 10, 1 << 20}));
  }
}

TEST(Bench, AnOpThatRefusesASizeIsSkippedWithItsReason) {
  const ScratchFolder folder(::testing::TempDir() + "sala_bench_skip_" + std::to_string(getpid()));
  const std::string file = folder.path + "/bench.json";
  BenchReport report({.device = "a test", .copy_bytes_per_s = 1, .gemm_flops_per_s = 1}, file);
  BenchOp op;
  op.name = op.pass = "odd";
  op.shape = [](const BenchShape& s) { return shape_text({s.tokens}); };
  op.bytes = [](const BenchShape& s) { return double(s.tokens); };
  op.prepare = [](const BenchShape& s) -> BenchRun {
    TORCH_CHECK(s.tokens % 2 == 1, "expected an odd number of tokens, got ", s.tokens, "\nat all");
    return [] { return BenchTensors(); };
  };
  for (const int64_t tokens : {2, 3}) measure_op(op, BenchShape{.tokens = tokens}, 1, report);
  const nlohmann::json written = nlohmann::json::parse(read_text_file(file));
  EXPECT_EQ(written.at("rows").size(), 1u);
  ASSERT_EQ(written.at("skipped").size(), 1u);
  EXPECT_EQ(written.at("skipped")[0].at("tokens"), 2);
  EXPECT_EQ(written.at("skipped")[0].at("reason"), "expected an odd number of tokens, got 2");
}

TEST(Bench, BadOptionsGetOneLine) {
  const std::pair<std::string, std::string> cases[] = {
      {"--op lightnin", "did you mean 'lightning'"},
      {"--tokens 4k", "--tokens: expected a whole number"},
      {"--tokens 1K --documents 3", "cannot be cut into 3 equal documents"},
      {"--heads 0", "--heads: must be at least 1"},
      {"--head-size 63", "--head-size: expected an even number"},
      {"--dtype fp8", "--dtype: expected bf16 or fp32"},
      {"--faster", "--faster"},
      {"--kv-heads 2", "--kv-heads needs --serve or --lists"},
      {"--serve --heads 32 --kv-heads 3", "--kv-heads: expected a divisor of the 32 query heads"},
      {"--lists", "--lists"},
      {"--lists nowhere.h5", "nowhere.h5: "},
  };
  for (const auto& [arguments, expected] : cases) {
    SCOPED_TRACE(arguments);
    const Output output = run_program(arguments);
    EXPECT_NE(output.code, 0);
    EXPECT_EQ(output.text.rfind("sala-bench: ", 0), 0u) << output.text;
    EXPECT_NE(output.text.find(expected), std::string::npos) << output.text;
    EXPECT_EQ(std::count(output.text.begin(), output.text.end(), '\n'), 1) << output.text;
  }
}

at::Tensor mixer_from_our_ops(const MixerInputs& in, const Documents& docs) {
  const at::Tensor q = qk_norm_rope(in.q, in.q_weight, in.cos, in.sin, in.eps);
  const at::Tensor k = qk_norm_rope(in.k, in.k_weight, in.cos, in.sin, in.eps);
  const auto [o, state] = lightning_attention(q, k, in.v, in.slopes, docs, in.scale);
  return gated_norm(o.reshape(in.z.sizes()), in.z, in.o_weight, in.eps);
}

// Documents shorter and longer than a chunk, and no multiple of it.
TEST(Bench, CompositionComputesTheMixer) {
  at::manual_seed(7);
  for (const auto& [length, documents] : {std::pair<int64_t, int64_t>{1, 2}, {43, 3}, {300, 1}}) {
    SCOPED_TRACE(length);
    const int64_t T = length * documents, NH = 3, HS = 16;
    auto leaf = [](at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(); };
    MixerInputs in{.q = leaf({T, NH, HS}),
                   .k = leaf({T, NH, HS}),
                   .v = leaf({T, NH, HS}),
                   .z = leaf({T, NH * HS}),
                   .q_weight = leaf({HS}),
                   .k_weight = leaf({HS}),
                   .o_weight = leaf({NH * HS}),
                   .cos = {},
                   .sin = {},
                   .slopes = lightning_slopes(NH),
                   .documents = documents,
                   .scale = 1.0 / std::sqrt(double(HS))};
    const RopeTable rope = rope_table(RopeConfig(), HS, T, at::arange(T), T);
    in.cos = rope.cos;
    in.sin = rope.sin;
    std::vector<int64_t> starts;
    for (int64_t d = 0; d < documents; ++d) starts.push_back(d * length);
    const std::vector<at::Tensor> leaves = {in.q,        in.k,        in.v,       in.z,
                                            in.q_weight, in.k_weight, in.o_weight};
    const at::Tensor ours = mixer_from_our_ops(in, Documents::from_starts(starts, T, at::kCPU));
    const at::Tensor theirs = composed_mixer(in), dy = at::randn({T, NH * HS});
    EXPECT_TRUE(test::close(ours, theirs, test::tolerance(at::kFloat)));
    const auto our_grads = torch::autograd::grad({ours}, leaves, {dy});
    const auto their_grads = torch::autograd::grad({theirs}, leaves, {dy});
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_TRUE(test::close(our_grads[i], their_grads[i], test::tolerance(at::kFloat)))
          << "gradient " << i;
    }
  }
}

}  // namespace
}  // namespace sala
