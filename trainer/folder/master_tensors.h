// A model's masters by tensor name, in whatever order somebody asks for them: what an export
// writes.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "trainer/parameters.h"

namespace sala {

class MasterTensors {
 public:
  // A collective where parameters are sharded: the parts come together one at a time, and `keeps`
  // (the rank that writes) holds them in bf16 in host memory.
  MasterTensors(Parameters& parameters, bool keeps);

  // On the CPU; bf16 or wider. Only where it keeps.
  at::Tensor tensor(const std::string& name);

 private:
  struct Place {
    size_t part;
    const Entry* entry;
  };
  const at::Tensor& flat(size_t part);

  Parameters& parameters_;
  std::unordered_map<std::string, Place> places_;
  std::vector<at::Tensor> gathered_;  // bf16; empty where every rank holds all masters
  size_t last_part_ = 0;
  at::Tensor last_;  // the part that was asked for last, where nothing was gathered
};

}  // namespace sala
