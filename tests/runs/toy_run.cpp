// Makes the toy source, stores and recipe, and starts sala-train under mpirun.
#include "tests/runs/toy_run.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <thread>

#include "data/files/hash.h"
#include "data/files/hdf5_file.h"
#include "data/files/safetensors.h"
#include "model/weights/parts.h"

namespace sala::test {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kVocab = 96;

ModelConfig toy_config() {
  ModelConfig c;
  c.family = "llama";
  c.num_layers = 3;
  c.width = 64;
  c.ffn_width = 128;
  c.vocab_size = kVocab;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_size = 32;
  c.max_position = 1024;
  c.tied_head = true;
  c.mixers.assign(c.num_layers, Mixer::kFull);
  return c;
}

void write_source(const std::string& folder) {
  fs::create_directories(folder);
  std::ofstream(folder + "/config.json") << R"({"model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 96, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": 0,
    "bos_token_id": 0, "hidden_act": "silu"})";
  std::ofstream(folder + "/tokenizer.json") << "{}";
  at::Generator generator = at::detail::createCPUGenerator(7);
  std::vector<SafetensorsSpec> specs;
  std::map<std::string, at::Tensor> tensors;
  for (const Layout& layout : model_layouts(toy_config())) {
    for (const Entry& e : layout.entries) {
      at::Tensor x = e.init == Init::kOnes ? at::ones(e.shape)
                                           : at::randn(e.shape, generator, at::kFloat) * 0.15;
      specs.push_back({e.name, at::kFloat, e.shape});
      tensors[e.name] = x;
    }
  }
  write_safetensors(folder + "/model.safetensors", specs,
                    [&](const std::string& name) { return tensors.at(name); });
}

// Text with something to learn: every token follows from the one before, with noise.
void write_store(const std::string& path, int64_t num_documents, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint16_t> tokens;
  std::vector<int64_t> offsets{0};
  for (int64_t d = 0; d < num_documents; ++d) {
    const int64_t length = 20 + static_cast<int64_t>(random() % 300);
    uint64_t token = 1 + random() % (kVocab - 1);
    for (int64_t t = 0; t < length; ++t) {
      tokens.push_back(static_cast<uint16_t>(token));
      token = random() % 5 == 0 ? 1 + random() % (kVocab - 1) : 1 + (token * 7 + 3) % (kVocab - 1);
    }
    tokens.push_back(0);
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  Xxh3Stream hash(Xxh3Width::k64);
  hash.update(tokens.data(), tokens.size() * sizeof(uint16_t));
  hash.update(offsets.data(), offsets.size() * sizeof(int64_t));
  Hdf5File file = Hdf5File::create(path);
  file.write_all("tokens", tokens, 65536);
  file.write_all("document_offsets", offsets);
  file.set_attribute("format", std::string("sala-token-store"));
  file.set_attribute("vocab_size", kVocab);
  file.set_attribute("eos_id", int64_t{0});
  file.set_attribute("tokenizer_hash", xxh3_64_hex("{}", 2));
  file.set_attribute("source", std::string("toy"));
  file.set_attribute("num_tokens", static_cast<int64_t>(tokens.size()));
  file.set_attribute("num_documents", num_documents);
  file.set_attribute("xxh3", hash.hex());
  file.commit();
}

std::string default_stages(int64_t save_every) {
  const std::string save = ", save_every: " + std::to_string(save_every);
  return "  - align: {tokens: 10240, row_length: 64, batch_tokens: 512, data: {a: 1, b: 2}, lr: "
         "3e-3" +
         save +
         "}\n"
         "  - score: {method: kl, data: {a: 1}, documents: 4, row_length: 128, recall_span: 16}\n"
         "  - swap: {keep: 2}\n"
         "  - distill: {tokens: 10240, row_length: 128, batch_tokens: 512, data: {a: 1, b: 1}, "
         "lr: 2e-3, rules: [{match: self_attn, lr_scale: 2}]" +
         save +
         "}\n"
         "  - train: {tokens: 10240, row_length: 256, batch_tokens: 512, data: {b: 1}, lr: 1e-3, "
         "schedule: wsd, recompute: full" +
         save +
         "}\n"
         "  - evaluate: {sources: [a, b], tokens: 1K, row_length: 128, needle_lengths: [64, 150], "
         "needle_depths: [0.5], needles_per_cell: 2, needle_source: a}\n"
         "  - export: {folder: none}\n";
}

}  // namespace

ToyRun::ToyRun(const ToyOptions& options) : exports_(options.stages.empty()) {
  char pattern[] = "/tmp/sala_toy_XXXXXX";
  folder_ = mkdtemp(pattern);
  write_source(folder_ + "/source");
  write_store(folder_ + "/a.h5", 60, 1);
  write_store(folder_ + "/b.h5", 40, 2);
  std::ofstream(folder_ + "/needles.json")
      << R"({"format": "sala-needles", "vocab_size": 96, "tokenizer_hash": ")"
      << xxh3_64_hex("{}", 2) << R"(", "items": [
        {"needle": [5, 6, 7, 8], "question": [5, 6], "answer": [7, 8], "text": "5 6 7 8"},
        {"needle": [9, 8, 7], "question": [9], "answer": [8, 7], "text": "9 8 7"}]})";
  std::ofstream recipe(folder_ + "/recipe.yaml");
  recipe << "source: " << folder_ << "/source\n"
         << "run: {folder: " << folder_ << "/run, seed: 3, device: cpu}\n"
         << "model: {sparse: {block_size: 16, kernel_size: 8, kernel_stride: 4, topk: 2, "
            "window_size: 32, dense_len: 128}}\n"
         << "data:\n  sources:\n    a: {files: [" << folder_ << "/a.h5]}\n    b: {files: ["
         << folder_ << "/b.h5]}\n  lanes: 6\n  needles: " << folder_ << "/needles.json\n"
         << "stages:\n"
         << (options.stages.empty() ? default_stages(options.save_every) : options.stages);
}

ToyRun::~ToyRun() { fs::remove_all(folder_); }

pid_t ToyRun::start(const std::string& name, int ranks, const std::string& arguments) const {
  // One rank needs no launcher, unless `arguments` tell mpirun of further ones.
  const bool alone = ranks == 1 && arguments.find(" : ") == std::string::npos;
  const std::string launcher =
      alone ? "" : "mpirun --allow-run-as-root --oversubscribe --bind-to none -np " +
                       std::to_string(ranks) + " ";
  const std::string command =
      "exec " + launcher + SALA_BIN_DIR "/sala-train " + recipe() +
      " --set run.folder=" + run_folder(name) +
      (exports_ ? " --set stages.export.folder=" + export_folder(name) : "") + " " + arguments;
  const pid_t process = fork();
  if (process == 0) {
    setpgid(0, 0);
    setenv("OMP_NUM_THREADS", "1", 1);
    const int log =
        open((folder_ + "/" + name + ".log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, 1);
    dup2(log, 2);
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  setpgid(process, process);
  return process;
}

int ToyRun::run(const std::string& name, int ranks, const std::string& arguments) const {
  int status = 0;
  waitpid(start(name, ranks, arguments), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string ToyRun::log(const std::string& name) const {
  std::ifstream file(folder_ + "/" + name + ".log");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

pid_t ToyRun::first_rank(const std::string& name) const {
  std::ifstream file(run_folder(name) + "/lock");
  return nlohmann::json::parse(file).at("pid").get<pid_t>();
}

std::vector<nlohmann::json> ToyRun::events(const std::string& name,
                                           const std::string& event) const {
  std::vector<nlohmann::json> found;
  std::ifstream file(run_folder(name) + "/metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    auto j = nlohmann::json::parse(line, nullptr, false);
    if (j.is_discarded() || j.value("event", "") != event) continue;
    for (const char* key : {"time", "seconds", "tokens_per_second", "memory_bytes", "mfu", "spent",
                            "skew_seconds"}) {
      j.erase(key);
    }
    found.push_back(j);
  }
  return found;
}

int64_t ToyRun::step_at_commit(const std::string& name, const std::string& stage,
                               int64_t step) const {
  int64_t last = -1;
  std::ifstream file(run_folder(name) + "/metrics.jsonl");
  for (std::string text; std::getline(file, text);) {
    const auto line = nlohmann::json::parse(text);
    if (line.value("stage", "") != stage) continue;
    if (line.at("event") == "step") last = line.at("step");
    if (line.at("event") == "checkpoint" && line.at("step") == step) return last;
  }
  return -1;
}

namespace {

bool wait_until(pid_t process, const std::function<bool()>& reached) {
  while (!reached()) {
    siginfo_t info{};
    if (waitid(P_PID, process, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace

bool ToyRun::wait_for_step(const std::string& name, pid_t process, const std::string& stage,
                           int64_t step) const {
  return wait_until(process, [&] {
    for (const auto& e : events(name, "step")) {
      if (e.at("stage") == stage && e.at("step") >= step) return true;
    }
    return false;
  });
}

int64_t ToyRun::num_scores(const std::string& name) const {
  int64_t count = 0;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run_folder(name) + "/scores", none)) {
    std::ifstream file(entry.path());
    for (std::string line; std::getline(file, line);) count += !line.empty();
  }
  return count;
}

bool ToyRun::wait_for_scores(const std::string& name, pid_t process, int64_t count) const {
  return wait_until(process, [&] { return num_scores(name) >= count; });
}

std::string ToyRun::checkpoint_of(const std::string& name, const std::string& stage) const {
  for (const auto& entry : fs::directory_iterator(run_folder(name) + "/checkpoints")) {
    if (entry.path().filename().string().ends_with("-" + stage + "-00000000")) {
      return entry.path().string();
    }
  }
  return "no checkpoint of " + stage;
}

nlohmann::json ToyRun::last_manifest(const std::string& name) const {
  std::string newest;
  for (const auto& entry : fs::directory_iterator(run_folder(name) + "/checkpoints")) {
    const std::string manifest = entry.path().string() + "/manifest.json";
    if (fs::exists(manifest)) newest = std::max(newest, manifest);
  }
  std::ifstream file(newest);
  return nlohmann::json::parse(file);
}

}  // namespace sala::test
