// Handlers that only set a flag.
#include "trainer/ranks/stop_signals.h"

#include <signal.h>

#include <csignal>

#include "trainer/ranks/launch_folder.h"

namespace sala {
namespace {

volatile std::sig_atomic_t stop_flag = 0;

void on_stop_signal(int) { stop_flag = 1; }

bool is_ignored(int number) {
  struct sigaction current {};
  return sigaction(number, nullptr, &current) == 0 && current.sa_handler == SIG_IGN;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // reads and writes in flight go on
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
  if (!is_ignored(SIGHUP)) sigaction(SIGHUP, &action, nullptr);
  action.sa_flags |= SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);

  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);

  sigset_t held;
  sigemptyset(&held);
  for (const int number : {SIGTERM, SIGUSR1, SIGHUP, SIGINT}) sigaddset(&held, number);
  sigprocmask(SIG_UNBLOCK, &held, nullptr);
}

bool stop_requested() { return stop_flag != 0 || launcher_asks_to_stop(); }

}  // namespace sala
