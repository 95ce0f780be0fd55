// What an evaluation asks for of multiple-choice sets and tasks, against what their files hold.
#pragma once

#include "trainer/evaluation/evaluate.h"
#include "trainer/stage.h"

namespace sala {

// Tasks and lengths that data.tasks lacks; prompts and questions longer than the source's sliding
// window, which the recipe alone does not tell (Stage::longest_row is what it tells). `path`: of
// the stage.
void check_question_inputs(const EvaluateOptions& options, const std::string& path,
                           const StageInputs& inputs, Problems& problems);

}  // namespace sala
