// What a unit keeps between its forward and its backward: a list of names and tensors, with what it
// would cost to make each again. Recomputing is forgetting some of them and running the forward
// again, which finds what is left.
#pragma once

#include <ATen/ATen.h>

#include <string_view>
#include <vector>

namespace sala {

enum class Cost {
  kElementwise,  // norms, rotations, gates
  kProduct,      // projections, lightning attention: arithmetic that grows with T
  kAttention,    // never made again: softmax attention's output and LSE, lists of blocks, and what
                 // other ranks gave
};

enum class Recompute {
  kNone,       // everything is kept
  kSelective,  // what costs a pass over memory is made again
  kFull,       // only the unit's input and Cost::kAttention are kept
};

class Saved {
 public:
  at::Tensor input;  // x (T, C) of the unit; undefined for the embedding
  // The level that trim() will be called with, known before the forward: what is forgotten anyway
  // need not be made whole.
  Recompute will_forget = Recompute::kNone;

  // Replaces what has this name.
  void keep(const char* name, at::Tensor tensor, Cost cost);
  at::Tensor find(std::string_view name) const;        // undefined when it is not there
  const at::Tensor& get(std::string_view name) const;  // TORCH_CHECK
  // get() that forgets: the tensor lives no longer than the backward needs it.
  at::Tensor take(std::string_view name);
  void trim(Recompute level);
  // Something was forgotten: the forward must run again before the backward.
  bool trimmed() const { return trimmed_; }
  void made_again() { trimmed_ = false; }
  int64_t num_bytes() const;  // of the list, without the input

 private:
  struct Kept {
    const char* name;
    at::Tensor tensor;
    Cost cost;
  };
  std::vector<Kept> kept_;
  bool trimmed_ = false;
};

// The tensor `name` of a forward pass: what a recompute finds, else what `make` gives, kept where
// something keeps (`saved` may be nullptr).
template <typename Make>
at::Tensor find_or_make(Saved* saved, const char* name, Cost cost, Make&& make) {
  if (saved == nullptr) return make();
  at::Tensor tensor = saved->trimmed() ? saved->find(name) : at::Tensor();
  if (tensor.defined()) return tensor;
  tensor = make();
  saved->keep(name, tensor, cost);
  return tensor;
}

}  // namespace sala
