// Parameters as flat buffers. A Layout names the tensors of one part of the model (the embedding, a
// block without its mixer, a mixer, the head) and where each lies in the part's flat buffer;
// Weights is a buffer with that layout and the views into it. Sharding, gathering, reducing, the
// optimizer, checkpoints, freezing and export all work on these two, whatever the tensors mean.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
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
  // Tensors that one product takes together, of equal width: end to end without padding between
  // them; the first is aligned. An empty name is left out.
  struct Named {
    std::string name;
    std::vector<int64_t> shape;
    Init init = Init::kNormal;
  };
  void add_group(const std::vector<Named>& group, bool decay);

  const Entry* find(std::string_view entry_name) const;  // by full name; nullptr if absent
  // By the last part of the name ("q_proj.weight"): -1 when absent, TORCH_CHECK when several end
  // so.
  int64_t index(std::string_view suffix) const;
};
using LayoutPtr = std::shared_ptr<const Layout>;

// A flat buffer seen through a layout; making one over a buffer that exists moves no data.
class Weights {
 public:
  Weights() = default;
  Weights(LayoutPtr layout, at::Tensor flat);  // flat (num_elements or more)
  Weights(LayoutPtr layout, at::ScalarType dtype, at::Device device);  // zero-filled
  Weights(Layout layout, at::ScalarType dtype, at::Device device);     // likewise

  const Layout& layout() const { return *layout_; }
  const LayoutPtr& layout_pointer() const { return layout_; }
  // Lookup by the last part of the name; TORCH_CHECK fails when absent.
  const at::Tensor& operator[](std::string_view suffix) const;
  at::Tensor find(std::string_view suffix) const;                  // undefined when absent
  const std::vector<at::Tensor>& views() const { return views_; }  // one per entry
  // The neighbours `first` … `last` of a group as one tensor, their first dimensions added.
  at::Tensor group(std::string_view first, std::string_view last) const;

  at::Tensor flat;

 private:
  LayoutPtr layout_;
  std::vector<at::Tensor> views_;
};

// View of entries [first, last] of a group in a flat buffer with that layout.
at::Tensor group_view(const Layout& layout, const at::Tensor& flat, int64_t first, int64_t last);

}  // namespace sala
