"""Multiple-choice questions as ids: score log p(choice | context), compare with the answer."""
from pathlib import Path

from . import UserError
from .documents import find_files, read_records
from .needles import write_json
from .vocabulary import Vocabulary


def encode_pair(vocabulary, context, choice):
    """Ids of context and choice as they are when the text is tokenised as a whole."""
    context_ids = vocabulary.encode(context)
    whole = vocabulary.encode(context + choice)
    return whole[:len(context_ids)], whole[len(context_ids):]


def make_item(vocabulary, record, where):
    contexts, choices = record.get("contexts"), record.get("choices")
    answer = record.get("answer")
    if not (isinstance(contexts, list) and isinstance(choices, list) and choices
            and len(contexts) == len(choices) and isinstance(answer, int)
            and 0 <= answer < len(choices)):
        raise UserError(f"{where}: expected as many 'contexts' as 'choices' and 'answer', the "
                        "index of one of them")
    pairs = [encode_pair(vocabulary, *pair) for pair in zip(contexts, choices)]
    if not all(context and choice for context, choice in pairs):
        raise UserError(f"{where}: expected at least one token in each context and choice")
    return {"task": record.get("task", ""), "answer": answer,
            "contexts": [context for context, _ in pairs],
            "choices": [choice for _, choice in pairs],
            "choice_bytes": [len(choice.encode()) for choice in choices]}


def prepare_choices(options):
    vocabulary = Vocabulary(options.tokenizer, eos=0)
    items = [make_item(vocabulary, record, f"{file}:{number}")
             for file in find_files(options.inputs)
             for number, record, _ in read_records(Path(file))]
    if not items:
        raise UserError(f"{options.inputs[0]}: expected questions, found none")
    write_json(options.out, {"format": "sala-choices", "tokenizer_hash": vocabulary.hash,
                             "vocab_size": vocabulary.size, "items": items})
    tasks = {item["task"] for item in items}
    print(f"{options.out}: {len(items)} questions, tasks: {', '.join(sorted(tasks))}")
