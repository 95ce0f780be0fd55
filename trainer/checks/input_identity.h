// What a run reads, by content: source model, token stores, what evaluations ask. A continued run
// must read the same bytes; where they lie does not matter.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/stores/store_catalog.h"
#include "trainer/recipe/recipe.h"
#include "trainer/world.h"

namespace sala {

std::string hash_of_file(const std::string& path);  // XXH3-128 of its bytes

// {"config", "tokenizer", "needles", "tasks": hash; "choices": {set: hash}; "weights": {file:
// {hash, stamp}}; "stores": {source: hash}}. The weights are hashed whole, shared out over the
// ranks, except files that still have the stamp (size, times, inode) of `known`, an identity from
// before. All ranks call it and get the same.
nlohmann::json input_identity(const Recipe& recipe, World& world, const StoreCatalog& stores,
                              const nlohmann::json& known);

// What differs, named for people; empty when both are of the same bytes.
std::vector<std::string> input_differences(const nlohmann::json& saved, const nlohmann::json& now);

}  // namespace sala
