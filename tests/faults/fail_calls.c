// A library to preload: makes chosen file calls of a process fail, delays them, makes them wait for
// those of another process, or raises a signal at them.
//
// SALA_FAIL_CALLS holds rules, separated by ';':   CALL PATTERN FIRST WHAT [TIMES]
//   CALL     open (with openat, fopen and their 64-bit twins), read, write (with writev), pread,
//            pwrite, fsync (with fdatasync), rename (with renameat), mkdir, unlink (with unlinkat,
//            remove, rmdir), truncate (with ftruncate), stat (all its forms), readdir, close,
//            flock, statvfs
//   PATTERN  of fnmatch(3), for the whole path ('*' matches '/' too); of a rename, either path
//   FIRST    the first matching call that is hit, from 1
//   WHAT     a name of errno (EIO): the call returns it, and nothing was done;
//            SHORT: a write takes half of its bytes, a read gives half;
//            DELAY:MS: the call waits for so many milliseconds first;
//            MARK:PATH: an empty file is made there just before the call;
//            UNTIL:PATH: the call waits until that file is there, a minute at most;
//            a signal (SIGKILL, SIGUSR1): it is raised just before the call, which then goes on
//   TIMES    calls in a row that are hit: 1 unless said; -1 = for ever
// Calls are counted by rule, in each process. Set the variables with tests/faults/failing_calls.h.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kMaxRules = 16, kShort = -1, kPathBytes = 2 * PATH_MAX, kPatienceMs = 60000 };

struct Rule {
  char call[16], pattern[PATH_MAX];
  long first, times;
  int error;  // errno, or kShort
  int signal;
  int delay;  // milliseconds
  char mark[PATH_MAX], until[PATH_MAX];
  atomic_long calls;
};

static struct Rule rules[kMaxRules];
static int num_rules = 0;
static pthread_once_t rules_once = PTHREAD_ONCE_INIT;

static void die(const char* rule, const char* why) {
  fprintf(stderr, "SALA_FAIL_CALLS: %s: %s\n", rule, why);
  _exit(126);
}

static int parse_what(const char* what, struct Rule* rule) {
  if (strcmp(what, "SHORT") == 0) {
    rule->error = kShort;
    return 1;
  }
  if (sscanf(what, "DELAY:%d", &rule->delay) == 1) return 1;
  if (sscanf(what, "MARK:%4095s", rule->mark) == 1) return 1;
  if (sscanf(what, "UNTIL:%4095s", rule->until) == 1) return 1;
  for (int number = 1; number < 134; ++number) {
    const char* name = strerrorname_np(number);
    if (name && strcmp(name, what) == 0) {
      rule->error = number;
      return 1;
    }
  }
  for (int number = 1; number < 32; ++number) {
    const char* name = sigabbrev_np(number);
    if (name && strncmp(what, "SIG", 3) == 0 && strcmp(name, what + 3) == 0) {
      rule->signal = number;
      return 1;
    }
  }
  return 0;
}

static void read_rules(void) {
  const char* text = getenv("SALA_FAIL_CALLS");
  char* const copy = strdup(text ? text : "");
  char* rest = copy;
  for (char* one; (one = strsep(&rest, ";"));) {
    if (strspn(one, " ") == strlen(one)) continue;
    if (num_rules == kMaxRules) die(one, "too many rules");
    struct Rule* rule = &rules[num_rules];
    char what[PATH_MAX];
    rule->times = 1;
    if (sscanf(one, " %15s %4095s %ld %4095s %ld", rule->call, rule->pattern, &rule->first, what,
               &rule->times) < 4) {
      die(one, "expected CALL PATTERN FIRST WHAT [TIMES]");
    }
    if (!parse_what(what, rule)) die(one, "no errno, no signal, not DELAY:MS and not SHORT");
    ++num_rules;
  }
  free(copy);
}

// By calls that no rule can be about.
static void make_mark(const char* path) {
  if (mknod(path, S_IFREG | 0600, 0) != 0 && errno != EEXIST) die(path, "cannot be made");
}

static void wait_for_mark(const char* path) {
  for (int ms = 0; ms < kPatienceMs && access(path, F_OK) != 0; ++ms) usleep(1000);
}

// What happens at this call: 0 = nothing, an errno, or kShort. `other`: a second path, or NULL.
static int fate(const char* call, const char* path, const char* other) {
  const int kept = errno;
  int result = 0;
  pthread_once(&rules_once, read_rules);
  for (int i = 0; i < num_rules; ++i) {
    struct Rule* rule = &rules[i];
    if (strcmp(rule->call, call) != 0) continue;
    if (fnmatch(rule->pattern, path, 0) != 0 && (!other || fnmatch(rule->pattern, other, 0) != 0))
      continue;
    const long number = atomic_fetch_add(&rule->calls, 1) + 1;
    if (number < rule->first) continue;
    if (rule->times >= 0 && number >= rule->first + rule->times) continue;
    if (rule->delay) usleep(1000 * (useconds_t)rule->delay);
    if (*rule->mark) make_mark(rule->mark);
    if (*rule->until) wait_for_mark(rule->until);
    if (rule->signal) raise(rule->signal);
    if (rule->error && !result) result = rule->error;
  }
  errno = kept;
  return result;
}

static void path_of(int file, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, kPathBytes - 1);
  path[length > 0 ? length : 0] = 0;
}

static void path_at(int folder, const char* name, char* path) {
  path[0] = 0;
  if (name[0] != '/' && folder != AT_FDCWD) path_of(folder, path);
  const size_t length = strlen(path);
  snprintf(path + length, kPathBytes - length, "%s%s", length ? "/" : "", name);
}

static int fate_of_file(const char* call, int file) {
  if (file <= STDERR_FILENO && strcmp(call, "write") != 0) return 0;
  char path[kPathBytes];
  path_of(file, path);
  return fate(call, path, NULL);
}

static int fate_at(const char* call, int folder, const char* name) {
  char path[kPathBytes];
  path_at(folder, name, path);
  return fate(call, path, NULL);
}

// Defines `type name(parameters)`: fails as `decision` says, else calls the real one.
#define WRAP(type, failed, name, parameters, arguments, decision) \
  type name parameters {                                          \
    static type(*real) parameters;                                \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name);          \
    const int error = decision;                                   \
    if (error > 0) {                                              \
      errno = error;                                              \
      return failed;                                              \
    }                                                             \
    return real arguments;                                        \
  }

#define WRAP_OPEN(name, folder, parameters, before)       \
  int name parameters {                                   \
    static int(*real) parameters;                         \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name);  \
    mode_t mode = 0;                                      \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
      va_list rest;                                       \
      va_start(rest, flags);                              \
      mode = va_arg(rest, mode_t);                        \
      va_end(rest);                                       \
    }                                                     \
    const int error = fate_at("open", folder, path);      \
    if (error > 0) {                                      \
      errno = error;                                      \
      return -1;                                          \
    }                                                     \
    return real(before path, flags, mode);                \
  }

// Reads and writes can also be cut short.
#define WRAP_BYTES(call, name, parameters, arguments)    \
  ssize_t name parameters {                              \
    static ssize_t(*real) parameters;                    \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name); \
    const int error = fate_of_file(call, file);          \
    if (error > 0) {                                     \
      errno = error;                                     \
      return -1;                                         \
    }                                                    \
    if (error == kShort && count > 1) count /= 2;        \
    return real arguments;                               \
  }

#define COMMA ,
WRAP_OPEN(open, AT_FDCWD, (const char* path, int flags, ...), )
WRAP_OPEN(open64, AT_FDCWD, (const char* path, int flags, ...), )
WRAP_OPEN(openat, folder, (int folder, const char* path, int flags, ...), folder COMMA)
WRAP_OPEN(openat64, folder, (int folder, const char* path, int flags, ...), folder COMMA)
WRAP(FILE*, NULL, fopen, (const char* path, const char* mode), (path, mode),
     fate("open", path, NULL))
WRAP(FILE*, NULL, fopen64, (const char* path, const char* mode), (path, mode),
     fate("open", path, NULL))
WRAP(DIR*, NULL, opendir, (const char* path), (path), fate("open", path, NULL))

WRAP_BYTES("read", read, (int file, void* bytes, size_t count), (file, bytes, count))
WRAP_BYTES("write", write, (int file, const void* bytes, size_t count), (file, bytes, count))
WRAP_BYTES("pread", pread, (int file, void* bytes, size_t count, off_t at),
           (file, bytes, count, at))
WRAP_BYTES("pread", pread64, (int file, void* bytes, size_t count, off_t at),
           (file, bytes, count, at))
WRAP_BYTES("pwrite", pwrite, (int file, const void* bytes, size_t count, off_t at),
           (file, bytes, count, at))
WRAP_BYTES("pwrite", pwrite64, (int file, const void* bytes, size_t count, off_t at),
           (file, bytes, count, at))
WRAP(ssize_t, -1, writev, (int file, const struct iovec* parts, int count), (file, parts, count),
     fate_of_file("write", file))

WRAP(int, -1, fsync, (int file), (file), fate_of_file("fsync", file))
WRAP(int, -1, fdatasync, (int file), (file), fate_of_file("fsync", file))
WRAP(int, -1, ftruncate, (int file, off_t size), (file, size), fate_of_file("truncate", file))
WRAP(int, -1, ftruncate64, (int file, off_t size), (file, size), fate_of_file("truncate", file))
WRAP(int, -1, truncate, (const char* path, off_t size), (path, size), fate("truncate", path, NULL))
WRAP(int, -1, truncate64, (const char* path, off_t size), (path, size),
     fate("truncate", path, NULL))
WRAP(int, -1, flock, (int file, int operation), (file, operation), fate_of_file("flock", file))
WRAP(int, -1, close, (int file), (file), fate_of_file("close", file))

WRAP(int, -1, rename, (const char* from, const char* to), (from, to), fate("rename", from, to))
WRAP(int, -1, renameat, (int a, const char* from, int b, const char* to), (a, from, b, to),
     fate("rename", from, to))
WRAP(int, -1, mkdir, (const char* path, mode_t mode), (path, mode), fate("mkdir", path, NULL))
WRAP(int, -1, unlink, (const char* path), (path), fate("unlink", path, NULL))
WRAP(int, -1, unlinkat, (int folder, const char* path, int flags), (folder, path, flags),
     fate_at("unlink", folder, path))
WRAP(int, -1, remove, (const char* path), (path), fate("unlink", path, NULL))
WRAP(int, -1, rmdir, (const char* path), (path), fate("unlink", path, NULL))

WRAP(int, -1, stat, (const char* path, struct stat* out), (path, out), fate("stat", path, NULL))
WRAP(int, -1, lstat, (const char* path, struct stat* out), (path, out), fate("stat", path, NULL))
WRAP(int, -1, fstat, (int file, struct stat* out), (file, out), fate_of_file("stat", file))
WRAP(int, -1, stat64, (const char* path, struct stat64* out), (path, out), fate("stat", path, NULL))
WRAP(int, -1, lstat64, (const char* path, struct stat64* out), (path, out),
     fate("stat", path, NULL))
WRAP(int, -1, fstat64, (int file, struct stat64* out), (file, out), fate_of_file("stat", file))
WRAP(int, -1, fstatat, (int folder, const char* path, struct stat* out, int flags),
     (folder, path, out, flags), fate_at("stat", folder, path))
WRAP(int, -1, statvfs, (const char* path, struct statvfs* out), (path, out),
     fate("statvfs", path, NULL))
WRAP(struct dirent*, NULL, readdir, (DIR * folder), (folder),
     fate_of_file("readdir", dirfd(folder)))
WRAP(struct dirent64*, NULL, readdir64, (DIR * folder), (folder),
     fate_of_file("readdir", dirfd(folder)))
