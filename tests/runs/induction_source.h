// A model whose recall is made by hand, so that it is known which layers matter: one whose
// attention looks at the token before, and above it one or more that look for the place where the
// current token stood before and give what came after it there (induction). All other layers
// attend at random and add next to nothing; there is no MLP.
#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace sala::test {

struct InductionModel {
  int64_t num_layers = 5;
  int64_t previous = 1;            // the layer that looks at the token before
  std::set<int64_t> induction{3};  // those that recall
};

inline constexpr int64_t kInductionVocab = 400;

// A Hugging Face folder with it; replaces what is there.
void write_induction_source(const std::string& folder, const InductionModel& model);
// A token store of documents in which no token stands twice but by repetition of the document's
// beginning.
void write_induction_store(const std::string& path, int64_t num_documents);

}  // namespace sala::test
