// Lines of text over TCP, for the watchdog: nothing here blocks but connecting, and nothing throws
// once a connection stands.
#pragma once

#include <sys/socket.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace sala {

class LineSocket {
 public:
  explicit LineSocket(int file);  // takes it over
  ~LineSocket();
  LineSocket(const LineSocket&) = delete;
  LineSocket& operator=(const LineSocket&) = delete;

  // From any thread. A line for which there is no room is dropped: the other end does not read.
  void send(const std::string& line);
  // Appends the whole lines that have come; false when the other end has closed or reset.
  bool receive(std::vector<std::string>& lines);

 private:
  const int file_;
  std::mutex sending_;
  std::string unsent_, received_;
};

class Listener {
 public:
  // On every address of this host, or only the loopback. Throws when that is impossible.
  // `most_waiting` connections stand before they are accepted, or as few as the system allows.
  explicit Listener(bool loopback_only, int most_waiting = SOMAXCONN);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  int port() const { return port_; }
  std::vector<std::string> addresses() const;  // where others may reach it, numeric
  std::unique_ptr<LineSocket> accept();        // null when nobody waits

 private:
  int file_ = -1, port_ = 0;
  bool loopback_only_;
};

// The first address that answers. Asks again for so long: a listener whose queue is full looks like
// one that is not there. Throws, naming all.
std::unique_ptr<LineSocket> connect_to(const std::vector<std::string>& addresses, int port,
                                       double seconds);

}  // namespace sala
