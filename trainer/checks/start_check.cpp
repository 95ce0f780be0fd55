// Surroundings, the bytes of the data and the device's kernels, before anything is trained.
#include "trainer/checks/start_check.h"

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/lightning/cuda.h"
#include "kernels/selection/cuda.h"
#include "trainer/checks/check_command.h"
#include "trainer/checks/input_identity.h"
#include "trainer/checks/verify_stores.h"
#include "trainer/ranks/agreement.h"

namespace sala {

namespace {

Facts small_files(const Run& run) {
  Facts facts;
  facts["tokenizer.json of " + run.recipe.source + " (XXH3)"] = run.tokenizer.hash;
  facts["config.json of " + run.recipe.source + " (XXH3)"] =
      hash_of_file(run.recipe.source + "/config.json");
  std::vector<std::string> files = run.recipe.data.choices;
  files.insert(files.end(), {run.recipe.data.needles, run.recipe.data.tasks});
  for (const std::string& file : files) {
    if (!file.empty()) facts[file + " (XXH3)"] = hash_of_file(file);
  }
  return facts;
}

}  // namespace

void preflight_on_first(Recipe& recipe, World& world, const PreflightOptions& options,
                        std::vector<std::string>& warnings) {
  std::string problems;
  world.together("", [&] {
    if (world.rank() != 0) return;
    preflight(recipe, options, warnings);
    problems = recipe.problems.text();
  });
  problems = world.broadcast(problems);
  if (!problems.empty()) throw SharedError(problems);
}

CheckDevice smallest_device(World& world) {
  CheckDevice device = check_device(world.device());
  device.memory_bytes = -world.max(-device.memory_bytes);
  return device;
}

void require_equal_files(Run& run) {
  Facts facts;
  run.world.together("", [&] { facts = small_files(run); });
  require_equal_facts(run.world, facts);
}

void require_attention_kernels(Run& run, const ModelConfig& hybrid) {
  const at::Device device = run.world.device();
  if (run.recipe.run.kernels != "strict" || !device.is_cuda() || !hybrid.is_hybrid()) return;
  run.world.together("run.kernels", [&] {
    const auto options = at::TensorOptions(device).dtype(run.world.compute_dtype());
    const at::Tensor q = at::empty({1, hybrid.num_heads, hybrid.head_size}, options);
    const at::Tensor k = at::empty({1, hybrid.num_kv_heads, hybrid.head_size}, options);
    // Under strict rules each throws where it would say no.
    lightning_kernels_run(q);
    block_select_kernels_run(q, k, Documents::single(1, device), hybrid.sparse, 1);
    block_sparse_kernels_run(q, k, hybrid.sparse.block_size, 1);
  });
}

bool check_inputs(Run& run, bool verify_again) {
  require_equal_files(run);
  return verify_stores(run, verify_again);
}

}  // namespace sala
