// Continual training on next-token loss: length, mixture, schedule and attention mode per stage.
#include "trainer/stages/model_training.h"

namespace sala {

namespace {

class TrainStage : public ModelTraining {
 public:
  std::string type() const override { return "train"; }

 protected:
  std::unique_ptr<Loss> make_loss(Run&) override { return std::make_unique<NextTokenLoss>(); }
};

}  // namespace

std::unique_ptr<Stage> make_train_stage() { return std::make_unique<TrainStage>(); }

}  // namespace sala
