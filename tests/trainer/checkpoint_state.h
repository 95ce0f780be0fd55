// State for checkpoint tests: values that follow from a seed, so that any process can tell what a
// checkpoint must hold. Used by tests of one process and of several ranks.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <string>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/world.h"

namespace sala {

// A folder of its own, removed with all it holds.
struct ScratchFolder {
  explicit ScratchFolder(std::string folder) : path(std::move(folder)) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  const std::string path;
};

inline ScratchFolder scratch(const std::string& name) {
  return ScratchFolder(::testing::TempDir() + "sala_" + name + std::to_string(getpid()));
}

inline World& world_of_one() {
  static World world(nullptr, nullptr, "cpu");
  return world;
}

// Sizes: one element, odd, and more than one slab (4 MiB) when `large`.
inline Layout state_layout(const std::string& name, bool large = false) {
  Layout layout;
  layout.name = name;
  layout.add(name + ".norm", {1}, false, Init::kOnes);
  layout.add(name + ".weight", {13, 7}, true, Init::kNormal);
  if (large) layout.add(name + ".large", {1031, 1021}, true, Init::kNormal);
  return layout;
}

inline at::Tensor state_values(const Layout& layout, int64_t seed) {
  at::Tensor values =
      at::sin(at::arange(layout.num_elements, at::kDouble) * 0.1 + static_cast<double>(seed))
          .to(at::kFloat);
  // Values that arithmetic would not bring through.
  float* const x = values.data_ptr<float>();
  x[1] = -0.0f;
  x[2] = std::numeric_limits<float>::quiet_NaN();
  x[3] = std::numeric_limits<float>::denorm_min();
  return values;
}

inline bool bits_equal(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == b.numel() && a.scalar_type() == b.scalar_type() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

inline void fill_state(StateWriter& out, int64_t seed, bool large = false) {
  out.json("loop", {{"seed", seed}, {"loss", 0.1 + static_cast<double>(seed)}});
  for (const char* part : {"embed", "layers.0.block"}) {
    const Layout layout = state_layout(part, large);
    out.tensor(part, "master", layout, state_values(layout, seed));
    out.tensor(part, "m", layout, state_values(layout, seed + 1));
  }
  const Layout layout = state_layout("head");
  out.frozen("head", "master", layout, state_values(layout, 77));
}

// Empty when `folder` holds exactly what fill_state(seed) wrote.
inline std::string state_difference(const std::string& folder, int64_t seed, bool large = false) {
  const auto in = Checkpoints::open(folder);
  if (in->json("loop").at("seed") != seed) return "another seed: " + in->json("loop").dump();
  const auto check = [&](const std::string& part, const std::string& field, int64_t s, bool big) {
    const Layout layout = state_layout(part, big);
    at::Tensor got = at::zeros({layout.num_elements});
    in->tensor(part, field, layout, got);
    return bits_equal(got, state_values(layout, s)) ? "" : part + "/" + field + " differs\n";
  };
  std::string result;
  for (const char* part : {"embed", "layers.0.block"}) {
    result += check(part, "master", seed, large) + check(part, "m", seed + 1, large);
  }
  return result + check("head", "master", 77, false);
}

}  // namespace sala
