// The lock, and HDF5's error stack as one line.
#include "data/files/hdf5_library.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "data/files/file_calls.h"
#include "data/files/hdf5_file.h"
#include "data/files/system_advice.h"

namespace sala::hdf5 {
namespace {

// First come, first served: with std::mutex a writer that frees and takes it in a loop can keep a
// reader out for the whole checkpoint.
class FairMutex {
 public:
  void lock() {
    std::unique_lock<std::mutex> guard(mutex_);
    const std::uint64_t ticket = next_++;
    turn_.wait(guard, [&] { return ticket == serving_; });
  }
  void unlock() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      ++serving_;
    }
    turn_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  std::uint64_t next_ = 0;
  std::uint64_t serving_ = 0;
};

FairMutex& library() {
  // Without HDF5's exit handler: after a failed write (full disk) it flushes once more and crashes.
  // We close every file ourselves.
  static const herr_t no_exit_handler = H5dont_atexit();
  static_cast<void>(no_exit_handler);
  static FairMutex mutex;
  return mutex;
}

herr_t keep_description(unsigned, const H5E_error2_t* error, void* text) {
  if (error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
  return 0;
}

const char* const kDamaged =
    "; the file is truncated or damaged: restore it from a copy or write it again";
const char* const kWriteAgain = "; check free space and permissions, then run again";

}  // namespace

Turn::Turn() {
  library().lock();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Turn::~Turn() { library().unlock(); }

Reason library_reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_description, &text);
  H5Eclear2(H5E_DEFAULT);
  int code = 0;
  // The file's name stands before these in HDF5's text, so we look for the last of them.
  const std::string number = ", errno = ", words = ", error message = '";
  const size_t at = text.rfind(number), start = text.rfind(words);
  if (at != std::string::npos && start != std::string::npos) {
    code = std::atoi(text.c_str() + at + number.size());
    const size_t from = start + words.size();
    text = text.substr(from, text.find('\'', from) - from);
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return {text.empty() ? "no reason given by HDF5" : text, code};
}

void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

void fail_reading(const std::string& path, const std::string& what, const Reason& reason) {
  const std::string text = what + ": " + reason.text;
  if (reason.code == EMFILE || reason.code == ENFILE) {
    throw TooManyOpenFiles(path + ": " + text + system_advice(reason.code));
  }
  if (reason.code != 0) {
    throw FileError(path + ": " + text + system_advice(reason.code), reason.code);
  }
  fail(path, text + kDamaged);
}

void fail_writing(const std::string& path, const std::string& what, const Reason& reason) {
  const std::string advice = system_advice(reason.code);
  fail(path, what + ": " + reason.text + (advice.empty() ? kWriteAgain : advice));
}

}  // namespace sala::hdf5
