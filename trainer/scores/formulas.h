// From what was measured with one layer swapped at a time to a score for each layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sala {

// What every row gave with every layer swapped, row by row: element (row * num_layers + layer).
struct SwapTable {
  SwapTable(int64_t num_rows, int64_t num_layers)
      : num_rows(num_rows),
        num_layers(num_layers),
        plain(static_cast<size_t>(num_rows * num_layers)),
        recall(plain) {}

  int64_t num_rows, num_layers;
  std::vector<double> plain, recall;
};

struct LayerScores {
  std::vector<double> plain, recall;  // (L) means over the rows
  std::vector<double> score;          // (L) more is more important
};

// All of them with a weight for each row (num_rows): 1, or how often a draw has it.

// plain, recall: mean KL to the teacher in nats (kl), or masses of attention at keys and at answers
// (retrieval). Score of layer l: plain_l / mean(plain) +
// recall_l / mean(recall), means over the layers, so that both count the same.
LayerScores kl_scores(const SwapTable& table, std::span<const double> weight);

// HALO (arXiv:2601.22156, layer selection). With R_l and C_l, both in [0, 1], what the model with
// layer l swapped scores on recall and on common sense:
//   s_l = (max_j R_j - R_l) / (max_j C_j - C_l + 1e-6), at most 50 (as its authors' program has
//   it).
// Keep a layer whose loss hurts recall and little else. Theirs is R = mean over SQuAD, FDA and
// SWDE, C = mean over HellaSwag and ARC. Here R = share of the tokens of asked answers that are
// predicted exactly, C = share of plain text's next tokens that are.
LayerScores halo_scores(const SwapTable& table, std::span<const double> weight);

}  // namespace sala
