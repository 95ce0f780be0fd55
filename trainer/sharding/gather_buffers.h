// Weights of sharded parts, whole for as long as somebody uses them: gathered on a side stream into
// persistent buffers. A buffer keeps what it holds until another part needs it, so a part that is
// used again soon (the last block of a forward pass) is not gathered twice.
//
// All ranks make the same calls in the same order, hence choose the same buffers and agree on what
// is gathered.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "kernels/collectives.h"
#include "model/weights/layout.h"
#include "trainer/sharding/cut.h"
#include "trainer/sharding/pool.h"
#include "trainer/sharding/side_stream.h"

namespace sala {

class GatherBuffers {
 public:
  struct Part {
    LayoutPtr layout;
    Cut cut;
    at::Tensor source;  // (cut.share) this rank's share, padding included
  };
  // Makes the buffers of `pool`. The dtype and the device are the sources'.
  GatherBuffers(std::vector<Part> parts, const Pool& pool, Comm& comm, const SideStream& stream);

  class Buffer;
  // The part is whole when the current stream gets here, until give_back(), which is as often as
  // take(). Where every buffer is in use a temporary one is made.
  Buffer& take(size_t part);
  static const Weights& weights(const Buffer& buffer);
  void give_back(Buffer& buffer);
  // Begins to gather, where a buffer is free for it.
  void hint(size_t part);

  // Before the current stream writes the part's source: gathers that read it are waited for.
  void wait_for_readers(size_t part) const { gathered_[part].wait(); }
  // After it: what was gathered is old.
  void source_changed(size_t part);

  int64_t num_bytes() const;

 private:
  Buffer* holder(size_t part);
  Buffer* free_buffer(size_t part, bool take_hinted);
  void gather(size_t part, Buffer& buffer);
  Buffer& add(int64_t size_class, int64_t num_elements, bool temporary);

  std::vector<Part> parts_;
  Pool pool_;
  Comm& comm_;
  const SideStream& stream_;
  at::TensorOptions options_;
  std::list<Buffer> buffers_;
  std::vector<Mark> written_;   // of each part's source
  std::vector<Mark> gathered_;  // the last time that each part was
  int64_t now_ = 0;             // counts uses
};

class GatherBuffers::Buffer {
 public:
  explicit Buffer(at::Device device) : free(device) {}

 private:
  friend class GatherBuffers;
  at::Tensor flat;
  int64_t size_class = 0;
  bool temporary = false;  // goes when it is given back
  int64_t part = -1;       // what it holds; -1: nothing of use
  bool hinted = false;     // somebody will come for it
  int64_t num_users = 0;
  int64_t last_use = 0;
  Mark free;                                  // its last user's work is done
  std::unordered_map<size_t, Weights> views;  // by part: making them anew costs the host time
  const Weights* now = nullptr;
};

}  // namespace sala
