// Where one part's weight gradients are added: a flat buffer with the part's layout, fp32 (fp64 for
// fp64 weights), so that sums over tokens, micro-batches and ranks are wide whatever the compute
// type is.
#pragma once

#include <ATen/ATen.h>

#include <string_view>
#include <vector>

#include "kernels/fp8.h"
#include "model/weights/layout.h"

namespace sala {

class Gradient {
 public:
  Gradient() = default;  // nothing trains
  // `trains`: one per entry of the layout; entries that do not train are never written.
  Gradient(LayoutPtr layout, at::Tensor flat, std::vector<bool> trains);

  bool wants_any() const;
  bool wants(std::string_view suffix) const;  // false for a tensor that is not there
  // Any of the neighbours `first` … `last` of a group.
  bool wants_any(std::string_view first, std::string_view last) const;
  at::Tensor view(std::string_view suffix) const;  // undefined where it is not wanted
  void add(std::string_view suffix, const at::Tensor& g);
  // += dy^T x for the matrices `first` … `last` of a group: dy (T, out of all of them), x (T, in).
  // One product where all of them train, else one for each that does. bf16 operands on CUDA are
  // summed in fp32 by the product itself.
  void add_product(std::string_view first, std::string_view last, const at::Tensor& dy,
                   const at::Tensor& x);
  // The same of FP8 operands, which are columns: dy^T (out of all of them, T), x^T (in, T).
  void add_product(std::string_view first, std::string_view last, const Fp8Rows& dy_columns,
                   const Fp8Rows& x_columns);
  // += the sums of dy's columns, for the biases of a group. Biases that are not there are no error.
  void add_bias(std::string_view first, std::string_view last, const at::Tensor& dy);

  at::Tensor flat;

 private:
  struct Range {
    int64_t first, last;    // entries
    int64_t column, width;  // of dy
  };
  // The runs of neighbours in first … last that train, as few as possible.
  std::vector<Range> ranges(std::string_view first, std::string_view last) const;

  LayoutPtr layout_;
  std::vector<bool> trains_;
};

}  // namespace sala
