// What sala-inspect does: describes a model folder or a checkpoint, runs token ids through it,
// continues them, keeps the block lists that its sparse layers choose.
#pragma once

#include <string>

namespace sala {

struct InspectOptions {
  std::string folder;
  std::string ids_file;        // JSON [[…], […]]: rows of token ids
  std::string store_file;      // instead: the first document of this token store
  int64_t tokens = 0;          // of `tokens` tokens or more, its first ones
  std::string logits_file;     // HDF5 dataset `logits` fp32 (B, T, V); rows of one length
  int64_t generate = 0;        // continue every row by so many tokens, greedily
  std::string out_file;        // {"generated": [[…], …]} goes here, besides the terminal
  std::string device = "cpu";  // cpu (fp32) | cuda (bf16)
  std::string lists_file;      // block lists of the sparse layers of one row (trainer/lists/file.h)
  int64_t layer = -1;          // of this layer alone
  int64_t last = 0;            // only the row's last tokens are written; 0: all
  bool html = false;           // write the run folder's report.html again, and nothing else
  bool dense = false;          // sparse layers attend densely whatever dense_len says
};

// Errors: std::runtime_error with one line.
void inspect(const InspectOptions& options);

// The description alone: family, layers and mixers, parameters, context, what cannot be exported;
// of a checkpoint or a run folder (its newest one) stage, step, source and kept layers.
std::string describe_folder(const std::string& folder);

}  // namespace sala
