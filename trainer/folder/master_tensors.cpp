// Parts brought together once, tensors handed out by name.
#include "trainer/folder/master_tensors.h"

namespace sala {

MasterTensors::MasterTensors(Parameters& parameters, bool keeps) : parameters_(parameters) {
  const bool sharded = parameters.shares_are_partial();
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    for (const Entry& entry : parameters.layout(p)->entries) places_[entry.name] = {p, &entry};
    if (!sharded) continue;
    const at::Tensor whole = parameters.whole(p);
    if (keeps) gathered_.push_back(whole.to(at::kBFloat16).cpu());
  }
}

const at::Tensor& MasterTensors::flat(size_t part) {
  if (!gathered_.empty()) return gathered_[part];
  if (!last_.defined() || last_part_ != part) last_ = parameters_.whole(part).cpu();
  last_part_ = part;
  return last_;
}

at::Tensor MasterTensors::tensor(const std::string& name) {
  const Place& place = places_.at(name);
  return flat(place.part)
      .narrow(0, place.entry->offset, place.entry->num_elements())
      .view(place.entry->shape);
}

}  // namespace sala
