// One file of a teacher cache: what a cut teacher (kernels/topk.h) says of tokens of a stage's
// rows. data/FORMAT.md has the bytes. A file is written once, in one go, and has its name when it
// is whole.
//
// Errors: std::runtime_error with one line that names the file and what is wrong with it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/files/hdf5_file.h"

namespace sala {

struct TopkFormat {
  std::int64_t topk = 0;
  std::int64_t vocab_size = 0;
  bool half = true;   // log-probabilities of ids in fp16, else in fp32
  std::string cache;  // XXH3-64 hex of the cache's teacher.json: a part of another one is refused

  bool wide_ids() const { return vocab_size > 65536; }  // u32, else u16
  std::int64_t bytes_per_token() const {
    return topk * ((wide_ids() ? 4 : 2) + (half ? 2 : 4)) + 12;
  }
};

// Tokens [begin, begin + n) of a stage's rows laid end to end.
struct TopkTokens {
  std::int64_t begin = 0;
  std::vector<std::int32_t> ids, position;  // (n) the token, its place in its document's part
                                            // of the row
  at::Tensor top_ids;   // (n, k) int16, int32: the bits of u16, u32; on the host, as all here
  at::Tensor log_p;     // (n, k) fp16, fp32: of top_ids
  at::Tensor log_tail;  // (n) fp32: of all other ids together

  std::int64_t count() const { return static_cast<std::int64_t>(ids.size()); }
  TopkTokens narrow(std::int64_t first, std::int64_t count) const;  // views where they are tensors
};

// Room for the values of `count` tokens from `begin` on.
TopkTokens empty_tokens(const TopkFormat& format, std::int64_t begin, std::int64_t count);

struct TokenRange {
  std::int64_t begin = 0, count = 0;
};

// Read and checked as a whole; written in this size, the last of a run of tokens smaller.
inline constexpr std::int64_t kPieceTokens = 4096;

void write_topk_part(const std::string& path, const TopkFormat& format,
                     const std::vector<TopkTokens>& tokens);

class TopkPart {
 public:
  // Opens and looks at types and sizes, not at the values.
  TopkPart(const std::string& path, const TopkFormat& format);

  const std::vector<TokenRange>& pieces() const { return pieces_; }
  // Compared with its checksum.
  TopkTokens read(std::size_t piece) const;

 private:
  [[noreturn]] void fail(const std::string& what) const;
  void check_datasets() const;

  TopkFormat format_;
  Hdf5File file_;
  std::vector<TokenRange> pieces_;
  std::vector<std::int64_t> first_row_;  // (pieces + 1) in the datasets
  std::vector<std::int64_t> checksums_;  // (pieces) the bits of XXH3-64
};

}  // namespace sala
