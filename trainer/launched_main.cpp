// bin/sala-train: holds stop signals back and becomes libexec/sala-train, the program itself.
// LibTorch's libraries take half a second to load, minutes from a cold network disk, and a signal
// in that time would kill the process. Held-back signals outlive exec; catch_stop_signals takes
// them. This file therefore uses the C library and nothing else. It also fills the places of
// standard streams that the caller closed: the next file opened would take one, and get our
// messages.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int, char** argv) {
  sigset_t held;
  sigemptyset(&held);
  sigaddset(&held, SIGTERM);
  sigaddset(&held, SIGINT);
  sigaddset(&held, SIGUSR1);
  sigaddset(&held, SIGHUP);
  sigprocmask(SIG_BLOCK, &held, nullptr);

  int file = 0;
  do {
    file = open("/dev/null", O_RDWR);
  } while (file >= 0 && file <= STDERR_FILENO);
  if (file > STDERR_FILENO) close(file);

  char path[PATH_MAX + 32] = "";
  const ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);
  path[length < 0 ? 0 : length] = '\0';
  for (int levels = 0; levels < 2; ++levels) {  // .../bin/sala-train
    if (char* slash = strrchr(path, '/')) *slash = '\0';
  }
  strcat(path, "/libexec/sala-train");
  execv(path, argv);
  fprintf(stderr, "sala-train: cannot start %s: %s; build or install it again\n", path,
          strerror(errno));
  return 127;
}
