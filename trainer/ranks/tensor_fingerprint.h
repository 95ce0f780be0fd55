// A number made of a tensor's bits, where the tensor lies: for comparing what ranks hold. Any
// change of one 8-byte word changes it, and it is the same on every device. Not a checksum for
// files (data/files/hash.h): it costs no copy to the host.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace sala {

// 16 hexadecimal digits. Contiguous, any dtype and device; blocks until it is computed.
std::string tensor_fingerprint(const at::Tensor& x);

}  // namespace sala
