// Tells a rank that is stopped or dead from one that is slow, and ends the job with a line that
// says who, where and in what. One thread per rank beats over TCP, apart from MPI and NCCL: every
// rank reports to rank 0, rank 0 beats back. However long a read, a checkpoint or a step takes,
// nothing happens while the rank's thread beats.
//
//   no beat for the timeout      the process is stopped, or its host is gone: the job ends
//   connection closed, no bye    the process is dead: the job ends at once
//   every rank waits for others  and nothing moved for the timeout: a hung collective, the job ends
//   all wait but some            these are told of, again and again, with what they are doing
//   the same, and no rank moved  for the much longer limit: some rank is stuck, the job ends
//
// A rank moves when it begins or ends an operation, calls MPI, runs a unit of the model, or reads
// or writes a file; when a collective of its device ends.
//
// Time counts only while the watching thread itself runs: a job that is stopped and continued as a
// whole (a suspended batch job) is no alarm.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "trainer/ranks/activity.h"
#include "trainer/ranks/line_socket.h"
#include "trainer/ranks/process_bytes.h"

namespace sala {

// SALA_WATCHDOG_SECONDS, default 30; 0 = off. Throws when it is no such number.
double watchdog_timeout();
// SALA_STUCK_SECONDS, default 1800; 0 = never. Likewise.
double stuck_timeout();

class Watchdog {
 public:
  // `stuck_seconds`: how long the others wait for ranks that do not move; 0 = for ever.
  Watchdog(int rank, int size, std::string host, double timeout_seconds, double stuck_seconds);
  ~Watchdog();  // says bye
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Start-up, in this order: rank 0 listens, its text goes to all, the others connect while rank 0
  // takes them in; then all start. What rank 0 has not seen after a minute may still come.
  // listen and connect throw when the network does not allow it.
  std::string listen(bool one_host);
  void connect(const std::string& text);
  void take_in();
  // `device` tells what collectives do on the device, beside what Activity knows of the main
  // thread. It is called from a thread of its own: a call into the driver may block.
  void start(std::function<void(ActivityReport&)> device);
  // This rank ends with an error of its own, which it has told: the others end silently.
  void end_others();

 private:
  struct Peer {
    std::unique_ptr<LineSocket> socket;  // null before it has connected, and after its bye
    bool left = false;
    double silent = 0;  // seconds
    std::string host = "an unknown host";
    ActivityReport report;
    int64_t bytes = 0;  // of its report when a rank moved last
  };

  void run();
  void watch_device(const std::function<void(ActivityReport&)>& device);
  ActivityReport own_report();
  void accept_peers();
  void read_from(size_t rank);
  void take(size_t rank, const nlohmann::json& message);
  void send_to_all(const nlohmann::json& message);
  void look_for_the_silent(double passed);
  void look_for_a_hang(double passed);
  void note_moves(int64_t count, double passed);
  std::string described(size_t rank) const;
  [[noreturn]] void end(const std::string& why);

  const int rank_, size_;
  const std::string host_;
  const double timeout_, stuck_timeout_;
  std::string token_;
  std::unique_ptr<Listener> listener_;                  // rank 0
  std::vector<std::unique_ptr<LineSocket>> strangers_;  // connected, but have not said who they are
  std::vector<Peer> peers_;  // by rank, this one included; other ranks than 0 hear only from 0
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  ActivityReport device_report_;
  ProcessBytes bytes_;  // of the watching thread
  std::thread thread_, device_thread_;
  // Seconds, of look_for_a_hang: without a change of counts; also without bytes; to the next line.
  double unmoved_ = 0, stuck_ = 0, tell_at_ = 0;
  int64_t last_count_ = -1;
};

}  // namespace sala
