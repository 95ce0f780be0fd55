// One rank's part in saving a checkpoint: its share of every tensor into rank-NNNNN.h5 as the
// caller hands the tensors over, frozen tensors into the run's frozen folder, and a report for rank
// 0, which makes the manifest of all reports.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "data/files/hdf5_file.h"
#include "trainer/checkpoint/manifest.h"

namespace sala {

class CheckpointWriter final : public StateWriter {
 public:
  // Writes into `folder`; frozen tensors into `frozen_folder`, whose place as seen from the
  // finished checkpoint is `frozen_prefix`. `sound_frozen`: files there that this process knows to
  // be right.
  CheckpointWriter(int rank, int size, std::string folder, std::string frozen_folder,
                   std::string frozen_prefix, std::set<std::string>& sound_frozen);

  // These never throw: the first error is kept until finish(), because the caller's ranks may meet
  // in collectives between two tensors, and none may drop out alone.
  void json(const std::string& name, const nlohmann::json& value) override;
  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              const at::Tensor& full) override;
  void frozen(const std::string& part, const std::string& field, const Layout& layout,
              const at::Tensor& full) override;

  // Closes the rank's file durably; throws the first error.
  void finish();
  // Closes and removes the rank's unfinished file.
  void abandon() { file_.reset(); }
  // For rank 0: this rank's shards, in the order of the calls.
  nlohmann::json report() const;

  // From the reports of all ranks. Throws when ranks handed over different tensors, or other values
  // in them: they no longer train one model, and a checkpoint of shares of each would be no model.
  Manifest assemble(const std::vector<nlohmann::json>& reports) const;

 private:
  template <class Work>
  void guarded(const Work& work);
  void begin_tensor(const std::string& part, const std::string& field, const Layout& layout,
                    const at::Tensor& full);
  void write_frozen(const std::string& path, const std::string& name, const std::string& hash,
                    const at::Tensor& full);
  void check_space(const std::string& folder, const std::string& what, int64_t num_bytes) const;

  int rank_, size_;
  std::string folder_, frozen_folder_, frozen_prefix_, file_name_;
  std::set<std::string>& sound_frozen_;
  std::optional<Hdf5File> file_;
  int64_t file_bytes_ = 0;
  std::vector<std::string> fingerprints_;  // of the whole tensors as this rank holds them
  int64_t num_frozen_ = 0;
  std::string error_;
  Manifest manifest_;  // of this rank alone
};

}  // namespace sala
