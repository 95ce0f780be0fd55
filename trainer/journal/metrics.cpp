// metrics.jsonl, and the way to the console.
#include "trainer/journal/metrics.h"

#include <cmath>
#include <stdexcept>

namespace sala {

Metrics::Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes)
    : path_(run_folder + "/metrics.jsonl"), writes_(writes) {
  if (!writes_) return;
  file_.emplace(path_, resume_at_bytes);
  console_ = std::make_unique<Console>(run_folder + "/run.log");
}

std::unique_ptr<Metrics> Metrics::on_terminal(bool speaks) {
  auto metrics = std::make_unique<Metrics>("", /*writes=*/false, 0);
  if (speaks) metrics->console_ = std::make_unique<Console>("");
  return metrics;
}

void Metrics::event(nlohmann::json line) {
  if (!writes_) return;
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  line["time"] = std::round(now.count() * 1000) / 1000;
  file_->append(line);
}

void Metrics::sync() {
  if (writes_) file_->sync();
}

void Metrics::check() const {
  if (failed()) throw std::runtime_error(file_->error() + "; run again to continue");
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

}  // namespace sala
