// Parameters as flat buffers. A Layout names the tensors of one part of the model (the embedding, a
// block without its mixer, a mixer, the head) and where each lies in the part's flat buffer;
// Weights is a buffer with that layout and the views into it. Sharding, gathering, reducing, the
// optimizer, checkpoints, freezing and export all work on these two, whatever the tensors mean.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sala {

enum class Init { kZeros, kOnes, kNormal };  // kNormal: standard deviation initializer_range

struct Entry {
  std::string name;  // as in the checkpoint, e.g. "model.layers.3.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // [out, in] for matrices
  int64_t offset = 0;          // elements from the start of the flat buffer
  bool decay = false;          // weight decay applies (matrices yes; norms, biases no)
  Init init = Init::kNormal;

  int64_t num_elements() const;
};

// Offsets are aligned to 64 elements (128 bytes in bf16); nothing here depends on ranks.
struct Layout {
  std::string name;  // "embed", "layers.3.block", "layers.3.mixer", "head"
  std::vector<Entry> entries;
  int64_t num_elements = 0;  // with padding

  void add(std::string entry_name, std::vector<int64_t> shape, bool decay, Init init);
  const Entry* find(std::string_view entry_name) const;  // by full name; nullptr if absent
};

// A flat buffer and its views. The views are autograd leaves; gradients are summed into `grad`
// (flat, fp32) by the step, not by autograd's own accumulation.
class Weights {
 public:
  Weights() = default;
  Weights(Layout layout, at::ScalarType dtype, at::Device device);  // zero-filled

  const Layout& layout() const { return layout_; }
  // Lookup by the last part of the name ("q_proj.weight"); TORCH_CHECK fails when absent.
  const at::Tensor& operator[](std::string_view suffix) const;
  at::Tensor find(std::string_view suffix) const;                  // undefined when absent
  const std::vector<at::Tensor>& views() const { return views_; }  // one per entry
  // Adds to the fp32 gradient of entry `index`; allocates `grad` zero-filled at first use.
  void accumulate_grad(size_t index, const at::Tensor& g);
  void ensure_grad();
  void set_requires_grad(bool on);

  at::Tensor flat;  // (num_elements), compute dtype
  at::Tensor grad;  // (num_elements) fp32 (fp64 for fp64), or undefined

 private:
  Layout layout_;
  std::vector<at::Tensor> views_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace sala
