// Non-blocking sockets.
#include "trainer/ranks/line_socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace sala {
namespace {

constexpr int kConnectMilliseconds = 3000;
constexpr std::chrono::milliseconds kBetweenTries(100);
constexpr size_t kLongestLine = 1 << 16;

// A numeric address and port, ready for connect().
struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

bool parse(const std::string& text, int port, Address& address) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  if (getaddrinfo(text.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return false;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return true;
}

// A connected socket, or -1.
int try_connect(const Address& address) {
  const int file = socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (file < 0) return -1;
  const auto* target = reinterpret_cast<const sockaddr*>(&address.storage);
  if (connect(file, target, address.length) == 0) return file;
  pollfd waiting{file, POLLOUT, 0};
  int error = errno;
  socklen_t size = sizeof error;
  if (error == EINPROGRESS && poll(&waiting, 1, kConnectMilliseconds) == 1 &&
      getsockopt(file, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0) {
    return file;
  }
  close(file);
  return -1;
}

}  // namespace

LineSocket::LineSocket(int file) : file_(file) {}
LineSocket::~LineSocket() { close(file_); }

void LineSocket::send(const std::string& line) {
  const std::lock_guard lock(sending_);
  if (unsent_.empty()) unsent_ = line + "\n";
  const ssize_t sent = ::send(file_, unsent_.data(), unsent_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) unsent_.erase(0, static_cast<size_t>(sent));
}

bool LineSocket::receive(std::vector<std::string>& lines) {
  char bytes[4096];
  ssize_t count = 0;
  while ((count = recv(file_, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
    received_.append(bytes, static_cast<size_t>(count));
    if (received_.size() > kLongestLine) return false;  // no rank of ours
    for (size_t end = 0; (end = received_.find('\n')) != std::string::npos;) {
      lines.push_back(received_.substr(0, end));
      received_.erase(0, end + 1);
    }
  }
  return count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

Listener::Listener(bool loopback_only, int most_waiting) : loopback_only_(loopback_only) {
  const auto try_listen = [&](int family, const char* text) {
    Address address;
    file_ = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (file_ < 0 || !parse(text, 0, address)) return false;
    const int off = 0;
    if (family == AF_INET6) setsockopt(file_, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    if (bind(file_, reinterpret_cast<sockaddr*>(&address.storage), address.length) != 0 ||
        ::listen(file_, most_waiting) != 0 ||
        getsockname(file_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
      close(file_);
      file_ = -1;
      return false;
    }
    port_ = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                     : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
    return true;
  };
  if (loopback_only ? try_listen(AF_INET, "127.0.0.1")
                    : try_listen(AF_INET6, "::") || try_listen(AF_INET, "0.0.0.0")) {
    return;
  }
  throw std::runtime_error(std::string("cannot listen for heartbeats: ") + std::strerror(errno));
}

Listener::~Listener() {
  if (file_ >= 0) close(file_);
}

std::vector<std::string> Listener::addresses() const {
  if (loopback_only_) return {"127.0.0.1"};
  std::vector<std::string> found;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return found;
  for (const ifaddrs* a = all; a; a = a->ifa_next) {
    if (!a->ifa_addr || !(a->ifa_flags & IFF_UP) || (a->ifa_flags & IFF_LOOPBACK)) continue;
    const int family = a->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    char text[NI_MAXHOST] = "";
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    const bool known =
        getnameinfo(a->ifa_addr, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0;
    if (known && !std::strchr(text, '%')) found.push_back(text);  // no link-local ones
  }
  freeifaddrs(all);
  return found;
}

std::unique_ptr<LineSocket> Listener::accept() {
  const int file = accept4(file_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return file < 0 ? nullptr : std::make_unique<LineSocket>(file);
}

std::unique_ptr<LineSocket> connect_to(const std::vector<std::string>& addresses, int port,
                                       double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    for (const std::string& text : addresses) {
      Address address;
      if (!parse(text, port, address)) continue;
      const int file = try_connect(address);
      if (file >= 0) return std::make_unique<LineSocket>(file);
    }
    std::this_thread::sleep_for(kBetweenTries);
  } while (Clock::now() < end);
  throw std::runtime_error(fmt::format("no connection to {}, port {}, within {:.0f} s",
                                       fmt::join(addresses, " or "), port, seconds));
}

}  // namespace sala
