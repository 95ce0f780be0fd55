// The bytes of the data, before anything is trained.
#include "trainer/check_inputs.h"

#include "data/source.h"

namespace sala {

void check_inputs(const Run& run) {
  int file_number = 0;
  for (const auto& [name, source] : run.recipe.data.sources) {
    for (const std::string& path : expand_globs(source.files)) {
      const TokenStore store(path, run.tokenizer);
      if (file_number++ % run.world.size() == run.world.rank()) store.verify_checksum();
    }
  }
}

}  // namespace sala
