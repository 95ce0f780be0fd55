// The beats and what is read from them.
#include "trainer/ranks/watchdog.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>

namespace sala {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kDefaultTimeout = 30;  // seconds; the job has ended well within a minute
// No work of one rank alone takes so long without a file, a unit of the model or MPI.
constexpr double kDefaultStuck = 1800;
constexpr int64_t kMovedBytes = 1 << 20;  // what a log or a heartbeat writes is less
constexpr double kTick = 0.1;             // seconds between looks; a launcher kills within one
constexpr double kLongestBeat = 0.5;
constexpr double kMeetSeconds = 60;  // until all ranks have found rank 0
constexpr size_t kMostRanks = 8;     // told on one line

nlohmann::json to_json(const ActivityReport& r) {
  return {{"stage", r.stage},           {"step", r.step},   {"operation", r.operation},
          {"waits", r.waits_for_ranks}, {"count", r.count}, {"bytes", r.bytes},
          {"seconds", r.seconds}};
}

ActivityReport from_json(const nlohmann::json& j) {
  return {j.value("stage", ""),         j.value("step", int64_t{0}),
          j.value("operation", ""),     j.value("waits", false),
          j.value("count", int64_t{0}), j.value("bytes", int64_t{0}),
          j.value("seconds", 0.0),      ""};
}

// Where rank 0 is gone, all others see it: they speak one after the other, and the launcher has
// ended the job, in a second or so, before the next one's turn.
void wait_for_turn(int rank) {
  std::this_thread::sleep_for(Seconds(0.3 + 2 * std::clamp(rank - 1, 0, 5)));
}

double seconds_of(const char* variable, double otherwise, const char* zero) {
  const char* text = std::getenv(variable);
  if (!text) return otherwise;
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  if (end == text || *end != '\0' || !std::isfinite(seconds) || seconds < 0) {
    throw std::runtime_error(
        fmt::format("{}: expected seconds, 0 for {}, got \"{}\"", variable, zero, text));
  }
  return seconds;
}

}  // namespace

double watchdog_timeout() {
  return seconds_of("SALA_WATCHDOG_SECONDS", kDefaultTimeout, "no watchdog");
}

double stuck_timeout() { return seconds_of("SALA_STUCK_SECONDS", kDefaultStuck, "no limit"); }

Watchdog::Watchdog(int rank, int size, std::string host, double timeout_seconds,
                   double stuck_seconds)
    : rank_(rank),
      size_(size),
      host_(std::move(host)),
      timeout_(timeout_seconds),
      stuck_timeout_(stuck_seconds),
      peers_(static_cast<size_t>(size)) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread* thread : {&thread_, &device_thread_}) {
    if (thread->joinable()) thread->join();
  }
  send_to_all({{"bye", true}});
}

std::string Watchdog::listen(bool one_host) {
  listener_ = std::make_unique<Listener>(one_host);
  std::random_device random;
  token_ = fmt::format("{:08x}{:08x}", random(), random());
  const nlohmann::json text = {
      {"addresses", listener_->addresses()}, {"port", listener_->port()}, {"token", token_}};
  return text.dump();
}

void Watchdog::connect(const std::string& text) {
  const nlohmann::json where = nlohmann::json::parse(text);
  token_ = where.at("token").get<std::string>();
  peers_[0].socket = connect_to(where.at("addresses"), where.at("port"), kMeetSeconds);
  const nlohmann::json hello = {{"token", token_}, {"rank", rank_}, {"host", host_}};
  peers_[0].socket->send(hello.dump());
}

// Kernels let as few as 128 connections wait (net.core.somaxconn) and drop those of more ranks.
void Watchdog::take_in() {
  const auto end = Clock::now() + Seconds(kMeetSeconds);
  const auto is_missing = [](const Peer& peer) { return !peer.socket; };
  while (std::any_of(peers_.begin() + 1, peers_.end(), is_missing) && Clock::now() < end) {
    accept_peers();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void Watchdog::start(std::function<void(ActivityReport&)> device) {
  device_thread_ = std::thread([this, device = std::move(device)] { watch_device(device); });
  thread_ = std::thread([this] { run(); });
}

void Watchdog::watch_device(const std::function<void(ActivityReport&)>& device) {
  while (true) {
    ActivityReport report;
    try {
      device(report);
    } catch (const std::exception& error) {  // of the driver, after a kernel's: the run ends by it
      report.operation = "looking at the device";
      report.error = error.what();
    }
    std::unique_lock lock(mutex_);
    device_report_ = report;
    if (wake_.wait_for(lock, Seconds(kTick), [this] { return stopping_; })) return;
  }
}

ActivityReport Watchdog::own_report() {
  ActivityReport report = Activity::here().report();
  report.bytes = bytes_.now();
  const std::lock_guard lock(mutex_);
  report.count += device_report_.count;
  report.error = device_report_.error;
  if (device_report_.waits_for_ranks || !report.error.empty()) {
    report.operation = device_report_.operation;
    report.waits_for_ranks = device_report_.waits_for_ranks;
  }
  return report;
}

void Watchdog::end_others() { send_to_all({{"end", true}}); }

void Watchdog::run() {
  // As fresh as rank 0 can read them: some hundred beats a second in all.
  const double beat = std::min({kLongestBeat, timeout_ / 5, kTick * (1 + size_ / 64)});
  auto last_look = Clock::now();
  double since_beat = beat;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, Seconds(kTick), [this] { return stopping_; })) return;
    }
    const double passed = std::min(Seconds(Clock::now() - last_look).count(), 2 * kTick);
    last_look = Clock::now();
    const ActivityReport mine = own_report();
    if (!mine.error.empty()) end(fmt::format("{}: {}", mine.operation, mine.error));
    Peer& self = peers_[static_cast<size_t>(rank_)];
    self.report = mine;
    self.host = host_;
    if (rank_ == 0) accept_peers();
    since_beat += passed;
    if (since_beat >= beat) {
      nlohmann::json message = to_json(mine);
      message["host"] = host_;
      send_to_all(message);
      since_beat = 0;
    }
    for (size_t r = 0; r < peers_.size(); ++r) read_from(r);
    look_for_the_silent(passed);
    if (rank_ == 0) look_for_a_hang(passed);
  }
}

// A connection is a rank's once it has said the token that only the ranks know.
void Watchdog::accept_peers() {
  while (auto socket = listener_->accept()) strangers_.push_back(std::move(socket));
  for (auto& stranger : strangers_) {
    std::vector<std::string> lines;
    const bool open = stranger->receive(lines);
    for (size_t i = 0; i < lines.size(); ++i) {
      const auto message = nlohmann::json::parse(lines[i], nullptr, false);
      if (stranger && (!message.is_object() || message.value("token", "") != token_)) break;
      const auto rank = static_cast<size_t>(message.value("rank", 0));
      if (rank >= peers_.size() || peers_[rank].socket) break;
      peers_[rank].socket = std::move(stranger);
      peers_[rank].host = message.value("host", "");
      for (++i; i < lines.size(); ++i) {
        take(rank, nlohmann::json::parse(lines[i], nullptr, false));
      }
    }
    if (!open) stranger.reset();
  }
  std::erase_if(strangers_, [](const auto& stranger) { return !stranger; });
}

void Watchdog::read_from(size_t rank) {
  Peer& peer = peers_[rank];
  if (!peer.socket || peer.left) return;
  std::vector<std::string> lines;
  const bool open = peer.socket->receive(lines);
  for (const std::string& line : lines) {
    take(rank, nlohmann::json::parse(line, nullptr, false));
  }
  if (open || peer.left) return;
  wait_for_turn(rank_);
  end(fmt::format("{} has died (killed, out of memory, or crashed)", described(rank)));
}

void Watchdog::take(size_t rank, const nlohmann::json& message) {
  Peer& peer = peers_[rank];
  if (!message.is_object()) return;
  peer.silent = 0;
  if (message.contains("bye")) {
    peer.left = true;
  } else if (message.contains("end")) {
    send_to_all(message);
    _exit(1);  // whoever began it has told why
  } else {
    peer.report = from_json(message);
    peer.host = message.value("host", "");
  }
}

void Watchdog::send_to_all(const nlohmann::json& message) {
  const std::string line = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  for (Peer& peer : peers_) {
    if (peer.socket && !peer.left) peer.socket->send(line);
  }
}

void Watchdog::look_for_the_silent(double passed) {
  for (size_t r = 0; r < peers_.size(); ++r) {
    Peer& peer = peers_[r];
    if (static_cast<int>(r) == rank_ || peer.left) continue;
    if (rank_ != 0 && r != 0) continue;  // only rank 0 hears all
    peer.silent += passed;
    if (peer.silent < timeout_) continue;
    wait_for_turn(rank_);
    end(fmt::format("{} has given no sign of life for {:.0f} s: it is stopped, or its host is gone",
                    described(r), peer.silent));
  }
}

void Watchdog::look_for_a_hang(double passed) {
  int64_t count = 0;
  std::vector<std::string> waiting, busy;
  for (size_t r = 0; r < peers_.size(); ++r) {
    count += peers_[r].report.count;
    if (peers_[r].left) return;  // the end of the run
    (peers_[r].report.waits_for_ranks ? waiting : busy).push_back(described(r));
  }
  note_moves(count, passed);
  if (unmoved_ == 0) tell_at_ = 2 * timeout_;
  const auto list = [](std::vector<std::string>& ranks) {
    const size_t more = ranks.size() > kMostRanks ? ranks.size() - kMostRanks : 0;
    ranks.resize(ranks.size() - more);
    return fmt::format("{}{}", fmt::join(ranks, "; "),
                       more > 0 ? fmt::format("; and {} more", more) : "");
  };
  if (busy.empty() && unmoved_ >= timeout_) {
    end(fmt::format("every rank waits for the others, and nothing has moved for {:.0f} s: {}",
                    unmoved_, list(waiting)));
  }
  if (waiting.empty() || busy.empty()) return;
  if (stuck_timeout_ > 0 && stuck_ >= stuck_timeout_) {
    end(fmt::format("{} rank(s) wait, and nothing has moved for {:.0f} s (SALA_STUCK_SECONDS): {}",
                    waiting.size(), stuck_, list(busy)));
  }
  if (unmoved_ < tell_at_) return;
  tell_at_ *= 2;
  const std::string line =
      fmt::format("sala-train: {} rank(s) wait for {}\n", waiting.size(), list(busy));
  std::fputs(line.c_str(), stderr);
}

void Watchdog::note_moves(int64_t count, double passed) {
  unmoved_ = count == last_count_ ? unmoved_ + passed : 0;
  last_count_ = count;
  const bool transfers = std::any_of(peers_.begin(), peers_.end(), [](const Peer& peer) {
    return peer.report.bytes - peer.bytes >= kMovedBytes;
  });
  stuck_ = transfers || unmoved_ == 0 ? 0 : stuck_ + passed;
  if (stuck_ > 0) return;
  for (Peer& peer : peers_) peer.bytes = peer.report.bytes;
}

std::string Watchdog::described(size_t rank) const {
  const Peer& peer = peers_[rank];
  const std::string where =
      peer.report.stage.empty()
          ? "before the first stage"
          : fmt::format("stage {}, step {}", peer.report.stage, peer.report.step);
  return fmt::format("rank {} on {} ({}, in {} for {:.0f} s)", rank, peer.host, where,
                     peer.report.operation, peer.report.seconds + peer.silent);
}

void Watchdog::end(const std::string& why) {
  const std::string line = fmt::format(
      "sala-train: {}; seen by {}, which ends the job; run the same command again to continue\n",
      why, described(static_cast<size_t>(rank_)));
  std::fflush(stdout);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  end_others();
  _exit(1);
}

}  // namespace sala
