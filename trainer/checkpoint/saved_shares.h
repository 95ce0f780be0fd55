// Parameters, and what belongs to their elements, in checkpoints: which elements a rank saves and
// loads under each way of holding them (trainer/parameters.h).
#pragma once

#include <string>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/parameters.h"

namespace sala {

// The elements of share(part), counted from its begin, that this rank saves: ranks with the same
// share divide it among themselves.
struct SavedRange {
  int64_t begin = 0, count = 0;
};
SavedRange saved_range(Parameters& parameters, size_t part);

// One value for each element of share(part), as the masters and the optimizer's moments are, under
// the field's name and the part's name behind `prefix`. `settled`: values that may never change
// again go where they are written once, those of one prefix and field into one file a rank.
struct ShareField {
  std::string prefix, field;
  bool settled = false;
};
void save_share(StateWriter& out, const ShareField& name, Parameters& parameters, size_t part,
                const at::Tensor& values);
void load_share(StateReader& in, const ShareField& name, Parameters& parameters, size_t part,
                at::Tensor& values);

// The masters of all parts. After loading, where all ranks have: Parameters::publish.
void save_masters(StateWriter& out, Parameters& parameters, const std::string& prefix,
                  bool settled);
void load_masters(StateReader& in, Parameters& parameters, const std::string& prefix);

// Whether the masters of this rank are those of the first group of ranks that holds a copy of the
// model, bit for bit. A collective.
bool equals_first_copy(Parameters& parameters);

}  // namespace sala
