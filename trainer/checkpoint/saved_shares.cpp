// Ranges of shares to and from checkpoints.
#include "trainer/checkpoint/saved_shares.h"

#include "trainer/ranks/tensor_fingerprint.h"

namespace sala {

SavedRange saved_range(Parameters& parameters, size_t part) {
  const Share& share = parameters.share(part);
  const int64_t count = share.end - share.begin;
  const Comm* copies = parameters.comms().copies;
  if (!parameters.shares_are_partial() || copies == nullptr) return {0, count};
  const int64_t begin = count * copies->rank() / copies->size();
  return {begin, count * (copies->rank() + 1) / copies->size() - begin};
}

void save_share(StateWriter& out, const ShareField& name, Parameters& parameters, size_t part,
                const at::Tensor& values) {
  const Layout& layout = *parameters.layout(part);
  const std::string saved_part = name.prefix + layout.name;
  if (!parameters.shares_are_partial()) {
    name.settled ? out.frozen(saved_part, name.field, layout, values)
                 : out.tensor(saved_part, name.field, layout, values);
    return;
  }
  const SavedRange range = saved_range(parameters, part);
  const int64_t begin = parameters.share(part).begin + range.begin;
  const at::Tensor own = values.narrow(0, range.begin, range.count);
  name.settled ? out.frozen(name.prefix + name.field, saved_part, name.field, layout, begin, own)
               : out.tensor(saved_part, name.field, layout, begin, own);
}

void load_share(StateReader& in, const ShareField& name, Parameters& parameters, size_t part,
                at::Tensor& values) {
  const Layout& layout = *parameters.layout(part);
  const std::string saved_part = name.prefix + layout.name;
  if (!parameters.shares_are_partial()) {
    in.tensor(saved_part, name.field, layout, values);
    return;
  }
  const int64_t begin = parameters.share(part).begin;
  if (Comm* copies = parameters.comms().copies) {
    in.tensor_of_copies(saved_part, name.field, layout, begin, values, *copies);
  } else {
    in.tensor(saved_part, name.field, layout, begin, values);
  }
}

void save_masters(StateWriter& out, Parameters& parameters, const std::string& prefix,
                  bool settled) {
  const ShareField name{prefix, "master", settled};
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    save_share(out, name, parameters, p, parameters.share(p).master);
  }
}

void load_masters(StateReader& in, Parameters& parameters, const std::string& prefix) {
  for (size_t p = 0; p < parameters.num_parts(); ++p) {
    load_share(in, {prefix, "master"}, parameters, p, parameters.share(p).master);
  }
}

bool equals_first_copy(Parameters& parameters) {
  Comm* copies = parameters.comms().copies;
  const Parameters::Options& options = parameters.options();
  if (!parameters.shares_are_partial() || copies == nullptr || !options.trains) return true;
  std::string mine;
  for (size_t part = 0; part < parameters.num_parts(); ++part) {
    mine += tensor_fingerprint(parameters.share(part).master);
  }
  const at::Tensor own = at::from_blob(mine.data(), {static_cast<int64_t>(mine.size())}, at::kByte);
  at::Tensor first =
      own.to(options.device, own.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  copies->broadcast(first, 0);
  return at::equal(first.cpu(), own);
}

}  // namespace sala
