// Weights of an induction circuit.
//
// The residual stream (C = 128) holds a token's code of kCode signs, the code of the token before,
// a constant, and the code of what is predicted, which the head alone reads. Rotation (theta 1e6,
// 32 pairs): the first pairs turn fast and find the token before, the last ones hardly turn and
// compare codes.
#include "tests/runs/induction_source.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <random>

#include "data/files/hash.h"
#include "data/files/safetensors.h"
#include "model/weights/parts.h"
#include "tests/data/test_store.h"

namespace sala::test {

namespace {

constexpr int64_t kWidth = 128, kCode = 38, kHead = 64, kPairs = kHead / 2;
constexpr int64_t kBefore = kCode, kConstant = 2 * kCode, kPredicted = kConstant + 2;  // dimensions
constexpr double kTheta = 1e6;
constexpr int64_t kFastPairs = 8, kSlowPairs = kCode / 2;

ModelConfig config_of(const InductionModel& model) {
  ModelConfig c;
  c.family = "llama";
  c.num_layers = model.num_layers;
  c.width = kWidth;
  c.ffn_width = 32;
  c.vocab_size = kInductionVocab;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_size = kHead;
  c.max_position = 1024;
  c.tied_head = false;
  c.mixers.assign(c.num_layers, Mixer::kFull);
  return c;
}

double norm_of(int64_t codes) {  // of a stream with so many codes and the constant
  return std::sqrt((static_cast<double>(codes * kCode) + 1) / kWidth);
}

// Dimension `i` of the codes that are compared: two for each slow pair.
int64_t slow_dimension(int64_t i) {
  return i < kSlowPairs ? kPairs - kSlowPairs + i : 2 * kPairs - 2 * kSlowPairs + i;
}

struct Attention {
  at::Tensor q = at::zeros({2 * kHead, kWidth}), k = at::zeros({kHead, kWidth});
  at::Tensor v = at::zeros({kHead, kWidth}), o = at::zeros({kWidth, 2 * kHead});
};

// q.k = strength * sum over the fast pairs of cos(f (t - 1 - s)): highest at s = t - 1.
Attention look_before() {
  Attention a;
  const double rms = norm_of(1), amplitude = 12 * rms;
  for (int64_t i = 0; i < kFastPairs; ++i) {
    const double f = std::pow(kTheta, -static_cast<double>(i) / kPairs);
    a.q[i][kConstant] = amplitude * std::cos(f);
    a.q[i + kPairs][kConstant] = -amplitude * std::sin(f);
    a.k[i][kConstant] = amplitude;
  }
  for (int64_t i = 0; i < kCode; ++i) {
    a.v[i][i] = rms;
    a.o[kBefore + i][i] = 1;
  }
  return a;
}

// Where the token before is the current one: what stands there.
Attention look_for_repetition() {
  Attention a;
  const double rms = norm_of(2), amplitude = 2.5 * rms;
  for (int64_t i = 0; i < kCode; ++i) {
    a.q[slow_dimension(i)][i] = amplitude;
    a.k[slow_dimension(i)][kBefore + i] = amplitude;
    a.v[i][i] = rms;
    a.o[kPredicted + i][i] = 1;
  }
  return a;
}

Attention look_at_random(at::Generator& generator) {
  Attention a;
  for (at::Tensor* w : {&a.q, &a.k, &a.v, &a.o}) {
    *w = at::randn(w->sizes(), generator, at::kFloat) * 0.1;
  }
  a.o *= 1e-4;
  return a;
}

// (V, C) with every token's code from dimension `first` on.
at::Tensor codes_at(int64_t first, double constant) {
  at::Generator generator = at::detail::createCPUGenerator(5);
  at::Tensor e = at::zeros({kInductionVocab, kWidth});
  const at::Tensor codes = at::randn({kInductionVocab, kCode}, generator, at::kFloat).sign();
  e.narrow(1, first, kCode).copy_(codes);
  e.select(1, kConstant).fill_(constant);
  return e;
}

}  // namespace

void write_induction_source(const std::string& folder, const InductionModel& model) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << R"({"model_type": "llama", "hidden_size": 128,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
    "vocab_size": 400, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": false, "eos_token_id": 0, "bos_token_id": 0, "hidden_act": "silu",
    "num_hidden_layers": )" << model.num_layers
                                         << "}";
  std::ofstream(folder + "/tokenizer.json") << "{}";
  at::Generator generator = at::detail::createCPUGenerator(7);
  std::map<std::string, at::Tensor> tensors;
  std::vector<SafetensorsSpec> specs;
  for (const Layout& layout : model_layouts(config_of(model))) {
    for (const Entry& e : layout.entries) {
      specs.push_back({e.name, at::kFloat, e.shape});
      tensors[e.name] = e.init == Init::kOnes ? at::ones(e.shape) : at::zeros(e.shape);
    }
  }
  tensors["model.embed_tokens.weight"] = codes_at(0, 1);
  tensors["lm_head.weight"] = codes_at(kPredicted, 0);
  for (int64_t l = 0; l < model.num_layers; ++l) {
    const Attention a = l == model.previous           ? look_before()
                        : model.induction.contains(l) ? look_for_repetition()
                                                      : look_at_random(generator);
    const std::string prefix = "model.layers." + std::to_string(l) + ".self_attn.";
    tensors[prefix + "q_proj.weight"] = a.q;
    tensors[prefix + "k_proj.weight"] = a.k;
    tensors[prefix + "v_proj.weight"] = a.v;
    tensors[prefix + "o_proj.weight"] = a.o;
  }
  write_safetensors(folder + "/model.safetensors", specs,
                    [&](const std::string& name) { return tensors.at(name); });
}

void write_induction_store(const std::string& path, int64_t num_documents) {
  std::mt19937_64 random(1);
  TestStore store;
  store.vocab_size = kInductionVocab;
  store.tokenizer_hash = xxh3_64_hex("{}", 2);
  for (int64_t d = 0; d < num_documents; ++d) {
    std::vector<std::int32_t> ids(kInductionVocab - 1);
    std::iota(ids.begin(), ids.end(), 1);
    for (size_t i = ids.size(); i > 1; --i) std::swap(ids[random() % i], ids[i - 1]);
    ids.resize(90);
    for (int64_t i = 0; i < 90; ++i) ids.push_back(ids[i]);
    ids.push_back(0);
    store.documents.push_back(ids);
  }
  write_store(path, store);
}

}  // namespace sala::test
