// sum_i (2 i + 1) * word_i over each slab of 8-byte words, modulo 2^64, slabs chained by an odd
// factor: odd numbers are invertible, so no single word can change unseen.
#include "trainer/ranks/tensor_fingerprint.h"

#include <cstdio>
#include <cstring>

namespace sala {
namespace {

constexpr int64_t kSlabWords = int64_t{1} << 18;  // products of a slab stay in the cache
constexpr uint64_t kChain = 0x9E3779B97F4A7C15;   // odd
constexpr int64_t kWordBytes = sizeof(int64_t);

void chain(uint64_t& value, uint64_t next) { value = value * kChain + next; }

}  // namespace

std::string tensor_fingerprint(const at::Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "tensor_fingerprint: expected a contiguous tensor");
  const at::Tensor bytes = x.detach().view({-1}).view(at::kByte);
  const int64_t num_words = bytes.numel() / kWordBytes;
  uint64_t value = static_cast<uint64_t>(bytes.numel());
  if (num_words > 0) {
    const at::Tensor words = bytes.narrow(0, 0, num_words * kWordBytes).view(at::kLong);
    const at::Tensor odd =
        at::arange(1, 2 * std::min(num_words, kSlabWords) + 1, 2, words.options());
    std::vector<at::Tensor> sums;
    for (int64_t at = 0; at < num_words; at += kSlabWords) {
      const int64_t count = std::min(kSlabWords, num_words - at);
      sums.push_back((words.narrow(0, at, count) * odd.narrow(0, 0, count)).sum());
    }
    const at::Tensor all = at::stack(sums).cpu();
    for (int64_t i = 0; i < all.numel(); ++i) {
      chain(value, static_cast<uint64_t>(all.const_data_ptr<int64_t>()[i]));
    }
  }
  const at::Tensor rest = bytes.narrow(0, num_words * kWordBytes, bytes.numel() % kWordBytes).cpu();
  uint64_t last = 0;
  std::memcpy(&last, rest.const_data_ptr(), static_cast<size_t>(rest.numel()));
  chain(value, last);
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace sala
