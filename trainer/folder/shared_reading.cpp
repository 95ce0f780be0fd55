// The loop over parts behind trainer/folder/shared_reading.h.
#include "trainer/folder/shared_reading.h"

#include <optional>

#include "model/weights/part_buffer.h"
#include "trainer/folder/reader.h"
#include "trainer/ranks/agreement.h"

namespace sala {

void read_on_all(World& world, const FolderReading& reading,
                 const std::function<bool(size_t part)>& wanted,
                 const std::function<void(size_t part, Weights& weights)>& take) {
  const auto& [folder, layouts, verify] = reading;
  const std::string what = "reading " + folder;
  std::optional<SourceWeights> files;
  Facts facts;
  world.together(what, [&] {
    files.emplace(folder, layouts);
    if (verify) files->verify(world.rank(), world.size());
    std::string& types = facts["types of the weights in " + folder];
    for (const LayoutPtr& layout : layouts) {
      types += std::string(at::toString(files->dtype_of(*layout))) + " ";
    }
  });
  require_equal_facts(world, facts);

  PartBuffer read(at::kCPU), sent(world.device());
  for (size_t p = 0; p < layouts.size(); ++p) {
    if (!wanted(p)) continue;
    // An error of one is everybody's before anything is sent.
    std::optional<Weights> part;
    world.together(what, [&] {
      const at::ScalarType dtype = files->dtype_of(*layouts[p]);
      if (world.rank() == 0) files->read(part.emplace(read.weights(layouts[p], dtype)));
      if (world.size() == 1) return;
      part = world.rank() == 0 ? sent.copy_of(*part, dtype) : sent.weights(layouts[p], dtype);
    });
    if (world.size() > 1) world.comm().broadcast(part->flat, 0);
    world.together(what, [&] { take(p, *part); });
  }
  world.together(what, [&] { files->check_finite(); });
}

}  // namespace sala
