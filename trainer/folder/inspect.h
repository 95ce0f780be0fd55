// What sala-inspect does: describes a model folder or a checkpoint, runs token ids through it,
// continues them.
#pragma once

#include <string>

namespace sala {

struct InspectOptions {
  std::string folder;
  std::string ids_file;        // JSON [[…], […]]: rows of token ids
  std::string logits_file;     // HDF5 dataset `logits` fp32 (B, T, V); rows of one length
  int64_t generate = 0;        // continue every row by so many tokens, greedily
  std::string out_file;        // {"generated": [[…], …]} goes here, besides the terminal
  std::string device = "cpu";  // cpu (fp32) | cuda (bf16)
  bool html = false;           // write the run folder's report.html again, and nothing else
  bool dense = false;          // sparse layers attend densely whatever dense_len says
};

// Errors: std::runtime_error with one line.
void inspect(const InspectOptions& options);

// The description alone: family, layers and mixers, parameters, context, what cannot be exported;
// of a checkpoint or a run folder (its newest one) stage, step, source and kept layers.
std::string describe_folder(const std::string& folder);

}  // namespace sala
