// Writing behind data/safetensors.h.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/atomic_file.h"
#include "data/safetensors.h"

namespace sala {
namespace {

const char* dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return "F64";
    case at::kFloat:
      return "F32";
    case at::kHalf:
      return "F16";
    case at::kBFloat16:
      return "BF16";
    case at::kLong:
      return "I64";
    case at::kInt:
      return "I32";
    default:
      TORCH_CHECK(false, "safetensors: cannot write dtype ", dtype);
  }
}

int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

// Keys in file order, which an ordered JSON object keeps; the metadata comes first.
std::string make_header(const std::vector<SafetensorsSpec>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  int64_t offset = 0;
  for (const SafetensorsSpec& spec : tensors) {
    TORCH_CHECK(!header.contains(spec.name), "safetensors: tensor ", spec.name, " came twice");
    const int64_t end =
        offset + num_elements(spec.shape) * static_cast<int64_t>(c10::elementSize(spec.dtype));
    header[spec.name] = {
        {"dtype", dtype_name(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

// A file descriptor that removes its file unless it was finished.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) fail("create the file");
  }
  ~TemporaryFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(const void* bytes, size_t num_bytes) {
    const char* at = static_cast<const char*>(bytes);
    while (num_bytes > 0) {
      const ssize_t done = ::write(fd_, at, std::min(num_bytes, size_t{1} << 30));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail("write");
      at += done;
      num_bytes -= static_cast<size_t>(done);
    }
  }
  void finish(const std::string& path) {
    rename_durably(path_, path);
    ::close(fd_);
    fd_ = -1;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    const int code = errno;
    throw std::runtime_error(path_ + ": cannot " + what + ": " + std::strerror(code) +
                             (code == ENOSPC ? "; free space and run again" : ""));
  }

  std::string path_;
  int fd_ = -1;
};

}  // namespace

void write_safetensors(const std::string& path, std::vector<SafetensorsSpec> tensors,
                       const std::function<at::Tensor(const std::string&)>& tensor) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    const auto a_bytes = c10::elementSize(a.dtype), b_bytes = c10::elementSize(b.dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a.name < b.name;
  });
  const std::string header = make_header(tensors);
  TemporaryFile file(path + ".tmp");
  const auto header_bytes = static_cast<uint64_t>(header.size());
  file.write(&header_bytes, sizeof header_bytes);  // little-endian hosts only
  file.write(header.data(), header.size());
  for (const SafetensorsSpec& spec : tensors) {
    const at::Tensor t = tensor(spec.name).to(at::kCPU, spec.dtype).contiguous();
    TORCH_CHECK(t.sizes() == at::IntArrayRef(spec.shape), "safetensors: ", spec.name,
                ": expected shape ", at::IntArrayRef(spec.shape), ", got ", t.sizes());
    file.write(t.data_ptr(), t.nbytes());
  }
  file.finish(path);
}

}  // namespace sala
