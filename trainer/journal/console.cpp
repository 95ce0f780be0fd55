// Progress lines, notes and RUN/run.log.
#include "trainer/journal/console.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "data/files/file_calls.h"

namespace sala {
namespace {

constexpr double kTerminalInterval = 0.1, kPlainInterval = 5;  // seconds between progress lines
constexpr const char* kDatedLine = "[%Y-%m-%d %H:%M:%S] [%l] %v";
constexpr const char* kTerminalLine = "[%H:%M:%S] [%^%l%$] %v";

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (s >= 86400) return fmt::format("{}d{:02}h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

std::string scaled(double x) {
  if (x >= 1e6) return fmt::format("{:.2f}M", x / 1e6);
  if (x >= 1e4) return fmt::format("{:.1f}K", x / 1e3);
  return fmt::format("{:.0f}", x);
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

double seconds_since(std::chrono::steady_clock::time_point then) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - then).count();
}

}  // namespace

std::string progress_text(const Progress& p, const std::string& place, size_t columns) {
  struct Piece {
    int importance;  // the higher, the longer it stays
    std::string text;
  };
  std::vector<Piece> pieces{{9, fmt::format("{}{} {}/{}{}", place, p.stage, p.step, p.num_steps,
                                            p.unit.empty() ? "" : " " + p.unit)}};
  if (p.loss) pieces.push_back({8, fmt::format("loss {:.4f}", *p.loss)});
  if (p.lr) pieces.push_back({4, fmt::format("lr {:.1e}", *p.lr)});
  if (p.grad_norm) pieces.push_back({3, fmt::format("grad {:.2g}", *p.grad_norm)});
  if (p.tokens_per_second > 0) {
    pieces.push_back({6, fmt::format("{} tokens/s", scaled(p.tokens_per_second))});
  }
  if (p.mfu >= 0) pieces.push_back({2, fmt::format("MFU {:.1f}%", 100 * p.mfu)});
  if (p.memory_bytes > 0) {
    pieces.push_back({1, fmt::format("{:.1f} GiB", p.memory_bytes / (1 << 30))});
  }
  if (p.seconds_left >= 0) pieces.push_back({7, duration(p.seconds_left) + " left"});
  if (p.run_seconds_left >= 0) {
    pieces.push_back({5, fmt::format("run ~{}", duration(p.run_seconds_left))});
  }
  const auto joined = [&] {
    std::string text;
    for (const Piece& piece : pieces) text += (text.empty() ? "" : "  ") + piece.text;
    return text;
  };
  std::string text = joined();
  while (columns > 0 && text.size() > columns && pieces.size() > 1) {
    pieces.erase(std::min_element(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) {
      return a.importance < b.importance;
    }));
    text = joined();
  }
  if (columns > 0 && text.size() > columns) text.resize(columns);
  return text;
}

double ItemClock::seconds_left(int64_t done, int64_t total) const {
  if (done < 1) return -1;
  return seconds_since(started_) * static_cast<double>(total - done) / static_cast<double>(done);
}

Console::Console(const std::string& log_path) : terminal_(terminal_columns() > 0) {
  std::shared_ptr<spdlog::sinks::sink> file = std::make_shared<spdlog::sinks::null_sink_mt>();
  if (!log_path.empty()) {
    static_cast<void>(replaceable_file(log_path));  // opening a FIFO would wait for its reader
    try {
      file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(log_path);
    } catch (const spdlog::spdlog_ex& error) {
      throw std::runtime_error(log_path + ": cannot open the log for writing (" + error.what() +
                               ")");
    }
  }
  file->set_pattern(kDatedLine);
  auto screen = std::make_shared<spdlog::sinks::stdout_color_sink_mt>(
      terminal_ ? spdlog::color_mode::automatic : spdlog::color_mode::never);
  screen->set_pattern(terminal_ ? kTerminalLine : kDatedLine);
  log_ = std::make_shared<spdlog::logger>("file", file);
  auto both = std::make_shared<spdlog::logger>("", spdlog::sinks_init_list{screen, file});
  for (const auto& logger : {log_, both}) {
    logger->set_level(spdlog::get_level());
    logger->flush_on(spdlog::level::trace);  // people read along, and a kill loses nothing
  }
  spdlog::set_default_logger(both);
}

// Messages after the run still reach people, without the file of a folder that may be gone.
Console::~Console() {
  auto screen = std::make_shared<spdlog::sinks::stdout_color_sink_mt>(
      terminal_ ? spdlog::color_mode::automatic : spdlog::color_mode::never);
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("", screen));
}

void Console::begin_stage(size_t number, size_t count) {
  place_ = fmt::format("[{}/{}] ", number, count);
}

void Console::progress(const Progress& progress) {
  const bool last = progress.step >= progress.num_steps;
  if (last || seconds_since(logged_) >= kPlainInterval) {
    logged_ = std::chrono::steady_clock::now();
    const std::string text = progress_text(progress, place_, 0);
    if (terminal_) {
      log_->info("{}", text);
    } else {
      spdlog::info("{}", text);
    }
  }
  if (!terminal_ || (!last && seconds_since(shown_) < kTerminalInterval)) return;
  shown_ = std::chrono::steady_clock::now();
  const std::string text = progress_text(progress, place_, terminal_columns() - 1);
  // Not fmt::print, which throws when nobody reads any more.
  std::fputs(fmt::format("\r\033[K{}{}", text, last ? "\n" : "").c_str(), stdout);
  line_open_ = !last;
  std::fflush(stdout);
}

void Console::note(const std::string& text) {
  if (line_open_) std::fputs("\r\033[K", stdout);
  line_open_ = false;
  std::fflush(stdout);
  spdlog::info("{}", text);
}

}  // namespace sala
