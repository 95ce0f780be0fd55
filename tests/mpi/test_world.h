// The world that main.cpp started.
#pragma once

#include "trainer/world.h"

namespace sala {

inline World*& test_world_pointer() {
  static World* world = nullptr;
  return world;
}

inline World& test_world() { return *test_world_pointer(); }

}  // namespace sala
