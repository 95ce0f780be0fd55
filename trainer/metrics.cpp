// metrics.jsonl, and the way to the console.
#include "trainer/metrics.h"

#include <cmath>
#include <filesystem>
#include <stdexcept>

namespace sala {
namespace {

namespace fs = std::filesystem;

// Cuts to `num_bytes`, or, when negative, what follows the last whole line (a killed run's torn
// one).
void cut(const std::string& path, int64_t num_bytes) {
  if (!fs::exists(path)) return;
  auto size = static_cast<int64_t>(fs::file_size(path));
  if (num_bytes >= 0 && num_bytes <= size) size = num_bytes;
  std::ifstream file(path, std::ios::binary);
  for (char last = 0; size > 0; --size) {
    file.seekg(size - 1);
    file.get(last);
    if (!file || last == '\n') break;
  }
  fs::resize_file(path, static_cast<uintmax_t>(size));
}

}  // namespace

Metrics::Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes)
    : path_(run_folder + "/metrics.jsonl"), writes_(writes) {
  if (!writes_) return;
  console_ = std::make_unique<Console>(run_folder + "/run.log");
  cut(path_, resume_at_bytes);
  file_.open(path_, std::ios::app | std::ios::binary);
  if (!file_) {
    throw std::runtime_error(path_ +
                             ": cannot open for writing; check the run folder's permissions");
  }
}

void Metrics::event(nlohmann::json line) {
  if (!writes_) return;
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  line["time"] = std::round(now.count() * 1000) / 1000;
  // A number that is not finite becomes null; text that is not UTF-8 must not end a run.
  file_ << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n'
        << std::flush;
  if (!file_) {
    throw std::runtime_error(path_ + ": cannot write; free disk space and run again to continue");
  }
}

void Metrics::begin_stage(size_t number, size_t count, double later_flops) {
  later_flops_ = later_flops;
  if (console_) console_->begin_stage(number, count);
}

void Metrics::progress(Progress progress) {
  if (!console_) return;
  if (progress.flops_per_second > 0 && progress.seconds_left >= 0) {
    progress.run_seconds_left = progress.seconds_left + later_flops_ / progress.flops_per_second;
  }
  console_->progress(progress);
}

void Metrics::note(const std::string& text) {
  if (console_) console_->note(text);
}

int64_t Metrics::size() const { return writes_ ? static_cast<int64_t>(fs::file_size(path_)) : 0; }

}  // namespace sala
