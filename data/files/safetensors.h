// safetensors files: 8 bytes little-endian header length, a JSON header that names dtype, shape and
// byte range of each tensor, then the bytes. The reader trusts nothing in the file: one that is
// short, torn, contradicts itself or changes while it is in use is refused, with the offset at
// which it went wrong.
//
// Errors: std::runtime_error, one line with file, byte offset or tensor, expected and came.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace sala {

struct SafetensorsEntry {
  std::string dtype;  // as in the header: "F32", "BF16", …
  std::vector<int64_t> shape;
  int64_t offset = 0;  // bytes from the start of the data
  int64_t num_bytes = 0;
};

// Entries are checked when the file is opened: known dtypes, sizes that agree with shapes, ranges
// that cover the data exactly once. Each tensor is read when it is asked for; between them no file
// is open, for a model may have a thousand.
class SafetensorsReader {
  class File;

 public:
  explicit SafetensorsReader(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  // True for the dtypes that tensor() can return: F64, F32, F16, BF16 and the integers.
  static bool can_read(const std::string& dtype);
  // A CPU tensor of its own. Throws when the file is no longer the one that was opened.
  at::Tensor tensor(const std::string& name) const;

  // The file while it is open, for whoever reads many of its tensors and keeps none. The reader
  // outlives it.
  class Open {
   public:
    explicit Open(const SafetensorsReader& reader);
    ~Open();
    const SafetensorsReader& reader() const { return reader_; }
    // The same in `buffer`, which is replaced by a longer one where it is too short. Good until the
    // next call.
    at::Tensor tensor(const std::string& name, at::Tensor& buffer) const;

   private:
    const SafetensorsReader& reader_;
    std::unique_ptr<File> file_;
  };

 private:
  using Version = std::array<int64_t, 4>;  // size, inode, time of the last change

  std::string path_;
  Version version_{};
  int64_t data_start_ = 0;  // bytes
  std::map<std::string, SafetensorsEntry> entries_;
};

// Writes `tensors` the way the reference library does: metadata {"format": "pt"}, tensors by
// falling element size and then by name, header padded with spaces to a multiple of 8 bytes.
// `tensor(name)` gives each tensor when its bytes are due (any dtype and device; cast to the dtype
// of its spec), so one is in memory at a time. Whole or not there: path.tmp, fsync, rename.
struct SafetensorsSpec {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};
void write_safetensors(const std::string& path, std::vector<SafetensorsSpec> tensors,
                       const std::function<at::Tensor(const std::string&)>& tensor);

}  // namespace sala
