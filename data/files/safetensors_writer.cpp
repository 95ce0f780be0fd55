// Writing behind data/files/safetensors.h.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/files/atomic_file.h"
#include "data/files/safetensors.h"

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

}  // namespace

void write_safetensors(const std::string& path, std::vector<SafetensorsSpec> tensors,
                       const std::function<at::Tensor(const std::string&)>& tensor) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    const auto a_bytes = c10::elementSize(a.dtype), b_bytes = c10::elementSize(b.dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a.name < b.name;
  });
  const std::string header = make_header(tensors);
  AtomicFile file(path);
  const auto header_bytes = static_cast<uint64_t>(header.size());  // little-endian hosts only
  file.write({reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes});
  file.write(header);
  for (const SafetensorsSpec& spec : tensors) {
    const at::Tensor t = tensor(spec.name).to(at::kCPU, spec.dtype).contiguous();
    TORCH_CHECK(t.sizes() == at::IntArrayRef(spec.shape), "safetensors: ", spec.name,
                ": expected shape ", at::IntArrayRef(spec.shape), ", got ", t.sizes());
    file.write({static_cast<const char*>(t.const_data_ptr()), t.nbytes()});
  }
  file.commit();
}

}  // namespace sala
