// The loop over parts behind trainer/folder/shared_reading.h.
#include "trainer/folder/shared_reading.h"

#include "model/weights/part_buffer.h"
#include "trainer/folder/reader.h"
#include "trainer/ranks/agreement.h"
#include "trainer/ranks/tensor_fingerprint.h"

namespace sala {

void read_on_all(World& world, const FolderReading& reading,
                 const std::function<bool(size_t part)>& wanted,
                 const std::function<void(size_t part, Weights& weights)>& take) {
  const auto& [folder, layouts, verify] = reading;
  Facts facts;
  world.together("reading " + folder, [&] {
    SourceWeights files(folder, layouts);
    if (verify) files.verify(world.rank(), world.size());
    PartBuffer buffer(at::kCPU);
    for (size_t p = 0; p < layouts.size(); ++p) {
      if (!wanted(p)) continue;
      Weights part = buffer.weights(layouts[p], files.dtype_of(*layouts[p]));
      files.read(part);
      facts["weights of " + layouts[p]->name + " in " + folder] =
          world.size() > 1 ? tensor_fingerprint(part.flat) : "";
      take(p, part);
    }
    files.check_finite();
  });
  require_equal_facts(world, facts);
}

}  // namespace sala
