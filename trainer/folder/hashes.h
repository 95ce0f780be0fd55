// SHA-256 sums that a model folder carries: SHA256SUMS, as ours do; and what the hub's client keeps
// of a download. They see what no format can: a flipped bit in a weight.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "data/files/safetensors.h"
#include "data/files/sha256.h"

namespace sala {

inline constexpr const char* kHashFile = "SHA256SUMS";

// The sum that FOLDER states for its file NAME and where it states it; empty when it does not.
struct StatedHash {
  std::string hex, where;
};
StatedHash stated_hash(const std::string& folder, const std::string& name);

// Follows a safetensors file as its tensors are read, in the order in which they lie in it: header
// and tensors are all of its bytes.
class FileHash {
 public:
  explicit FileHash(const std::string& path);  // reads the header
  void update(const at::Tensor& tensor);       // CPU, contiguous
  // Throws when the sum is another one.
  void check(const StatedHash& stated) const;

 private:
  std::string path_;
  Sha256 hash_;
};

// Writes FOLDER/SHA256SUMS over these files of it, in the form of `sha256sum`; `known`: sums of
// further files that are not there yet.
void write_hashes(const std::string& folder, const std::vector<std::string>& names,
                  std::map<std::string, std::string> known);

}  // namespace sala
