// metrics.jsonl and the progress line.
#include "trainer/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace sala {
namespace {

constexpr double kTerminalInterval = 0.1, kPlainInterval = 5;  // seconds between progress lines

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

std::string scaled(double x) {
  if (x >= 1e6) return fmt::format("{:.2f}M", x / 1e6);
  if (x >= 1e4) return fmt::format("{:.1f}K", x / 1e3);
  return fmt::format("{:.0f}", x);
}

std::string progress_text(const Progress& p) {
  std::string text = fmt::format("{}  {}/{}  loss {:.4f}", p.stage, p.step, p.num_steps, p.loss);
  if (p.tokens_per_second > 0) text += fmt::format("  {} tokens/s", scaled(p.tokens_per_second));
  if (p.mfu >= 0) text += fmt::format("  MFU {:.1f}%", 100 * p.mfu);
  if (p.memory_bytes > 0) text += fmt::format("  {:.1f} GiB", p.memory_bytes / (1 << 30));
  return text + fmt::format("  {} left", duration(p.seconds_left));
}

// Columns of the terminal that people watch, 0 where it is none. Under mpirun a rank's own stdout
// is a pseudo-terminal even when all output goes to a file: mpirun's stdout tells.
size_t terminal_columns() {
  int output = STDOUT_FILENO;
  if (std::getenv("OMPI_COMM_WORLD_SIZE")) {
    const std::string path = fmt::format("/proc/{}/fd/1", getppid());
    output = open(path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  }
  struct winsize size {};
  const bool terminal = output >= 0 && isatty(output) == 1;
  const bool known = terminal && ioctl(output, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  if (output > STDERR_FILENO) close(output);
  return terminal ? (known ? size.ws_col : 80) : 0;
}

}  // namespace

Metrics::Metrics(const std::string& run_folder, bool writes, int64_t resume_at_bytes)
    : path_(run_folder + "/metrics.jsonl"), writes_(writes) {
  if (!writes_) return;
  terminal_ = terminal_columns() > 0;
  file_.emplace(path_, resume_at_bytes);
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

void Metrics::progress(const Progress& progress) {
  if (!writes_) return;
  const auto now = std::chrono::steady_clock::now();
  const bool last = progress.step >= progress.num_steps;
  const std::chrono::duration<double> since = now - last_;
  if (!last && since.count() < (terminal_ ? kTerminalInterval : kPlainInterval)) return;
  last_ = now;
  std::string text = progress_text(progress);
  if (terminal_) {
    text.resize(std::min(text.size(), terminal_columns() - 1));
    fmt::print("\r\033[K{}{}", text, last ? "\n" : "");
    line_open_ = !last;
  } else {
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
}

void Metrics::note(const std::string& text) {
  if (!writes_) return;
  if (line_open_) fmt::print("\r\033[K");
  line_open_ = false;
  std::fflush(stdout);
  spdlog::info("{}", text);
}

}  // namespace sala
