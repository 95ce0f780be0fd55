// Hugging Face model folders as sources: config.json and safetensors (one file or sharded).
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights/layout.h"
#include "trainer/folder/tensors.h"

namespace sala {

// Reads FOLDER/config.json. Throws std::runtime_error naming file and key.
ModelConfig read_model_config(const std::string& folder);
nlohmann::json read_config_json(const std::string& folder);

// The weights of a model folder, read a part at a time. The layouts together must name every tensor
// of the folder exactly once: tensors that are missing, unexpected, of the wrong shape or of an
// unsupported dtype (F32, F16, BF16 are read) are listed in ONE error. Known harmless extras are
// skipped: rotary inv_freq buffers, lm_head.weight equal to tied embeddings, which also may be
// there under either name alone. Truncated or torn safetensors files: an error naming file and byte
// offset.
class SourceWeights {
 public:
  SourceWeights(const std::string& folder, const std::vector<LayoutPtr>& layouts);

  // Reads the files once, every `of`-th beginning with number `share`: one with another SHA-256
  // than the folder states (trainer/folder/hashes.h) is an error.
  void verify(int share, int of) const;
  // The type that holds every value of a part as it is in the files: theirs where they are of one.
  at::ScalarType dtype_of(const Layout& layout) const;
  // Fills a part (any floating dtype and device).
  void read(Weights& part);
  // An error that lists all tensors with NaN or infinity among what was read.
  void check_finite() const;

 private:
  std::string folder_;
  FolderTensors files_;
  std::map<std::string, std::string> stored_name_;  // by our name
  std::vector<std::string> non_finite_;
  at::Tensor buffer_;  // of the tensor that is being read
};

// Fills parts that together are the whole model; checks all that can be checked.
void read_weights(const std::string& folder, std::vector<Weights>& parts);

// The same comparison from the headers of the files alone: throws that error, reads no tensor.
void check_weights(const std::string& folder, const std::vector<Layout>& layouts);

}  // namespace sala
