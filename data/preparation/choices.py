"""Multiple-choice questions as ids: score log p(choice | context), compare with the answer."""
from . import UserError, say
from .documents import check_unicode, parse_record, read_lines
from .inputs import find_files
from .item_file import ItemFile
from .vocabulary import Vocabulary


def encode_pair(vocabulary, context, choice):
    """The context's own ids, and of those of the whole text the ones behind as many, as
    lm-evaluation-harness cuts it: where tokens merge over the border, no part of a choice gets into
    its context. Spaces at the context's end go with the choice, whose tokens begin with them."""
    stripped = context.rstrip()
    context, choice = stripped, context[len(stripped):] + choice
    context_ids = vocabulary.encode(context)
    whole = vocabulary.encode(context + choice)
    return context_ids, whole[len(context_ids):]


def text_length(choice):
    """Characters of a choice's text for the normalised accuracy, as lm-evaluation-harness counts
    them: the space that joins it to its context is not its own."""
    return max(1, len(choice.removeprefix(" ")))


def check_record(record, where):
    contexts, choices, answer = (record.get(k) for k in ("contexts", "choices", "answer"))
    if not (isinstance(contexts, list) and isinstance(choices, list) and len(choices) > 1
            and len(contexts) == len(choices) and type(answer) is int
            and 0 <= answer < len(choices)):
        raise UserError(f"{where}: expected as many 'contexts' as 'choices', two or more, and "
                        "'answer', the index of one of them")
    texts = [*contexts, *choices, record.get("task", "")]
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{where}: expected text in 'contexts', 'choices' and 'task', found "
                            f"{str(text)[:40]!r}")
        check_unicode(text, where)


def make_item(vocabulary, record, where):
    check_record(record, where)
    pairs = [encode_pair(vocabulary, *pair) for pair in zip(record["contexts"], record["choices"])]
    for (context, choice), text in zip(pairs, record["choices"]):
        if not context or not text:
            raise UserError(f"{where}: expected at least one token in each context and choice")
        if not choice:
            raise UserError(f"{where}: the tokenizer joins the whole choice {text[:40]!r} to its "
                            "context's last token; let choices begin with a space or a new word")
    largest = max(max(context + choice) for context, choice in pairs)
    if largest >= vocabulary.size:
        raise UserError(f"{vocabulary.folder}: the tokenizer gave id {largest}, config.json's "
                        f"vocab_size is {vocabulary.size}")
    return {"task": record.get("task", ""), "answer": record["answer"],
            "contexts": [vocabulary.start + context for context, _ in pairs],
            "choices": [choice for _, choice in pairs],
            "choice_chars": [text_length(choice) for choice in record["choices"]]}


def prepare_choices(options):
    out = ItemFile(options.out, "sala-choices")
    files, _ = find_files(options.inputs, kinds=("json",))
    vocabulary = Vocabulary(options.tokenizer, eos=0, bos=options.bos,
                            special_tokens=options.special_tokens)
    items = []
    for file in files:
        for number, line, _ in read_lines(file):
            where = f"{file}:{number}"
            items.append(make_item(vocabulary, parse_record(line, where), where))
    if not items:
        raise UserError(f"{options.inputs[0]}: expected questions, found none")
    out.write(vocabulary, items)
    tasks = {item["task"] for item in items}
    say(f"{options.out}: {len(items)} questions, tasks: {', '.join(sorted(tasks))}")
