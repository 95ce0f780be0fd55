"""The chat template of a Hugging Face folder, run as transformers runs it: Jinja in a sandbox,
with the special tokens by name. The same messages always give the same text: templates that ask
for today's date get none."""
import json

from . import BadDocument, UserError
from .special_tokens import contents, read_json

TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token",
               "mask_token")


def read_template(folder):
    """Text of the template: chat_template.jinja, else what tokenizer_config.json has."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    found = read_json(file).get("chat_template")
    if isinstance(found, list):  # several by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str) or not found:
        raise UserError(f"{file}: expected a chat template (chat_template, or a file "
                        "chat_template.jinja beside it); found none: is this the folder of a "
                        "model for chats?")
    return found


def special_tokens_of(folder):
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_json(folder / name)
        for key in TOKEN_NAMES:
            for token in contents(config.get(key)):
                found[key] = token
    return found


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Text stays as it is: Jinja's own filter writes <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def make_environment():
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %}, with which templates mark the assistant's words: only its body."""
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment


class ChatTemplate:
    def __init__(self, folder):
        import jinja2
        self.text, self.tokens = read_template(folder), special_tokens_of(folder)
        try:
            self.template = make_environment().from_string(self.text)
        except jinja2.TemplateError as error:
            raise UserError(f"{folder}: expected a chat template in Jinja ({error})") from error

    def identity(self):
        """Bytes that decide what is written."""
        return json.dumps([self.text, self.tokens], sort_keys=True).encode()

    def render(self, messages, add_generation_prompt=False):
        try:
            return self.template.render(messages=messages, tools=None, documents=None,
                                        add_generation_prompt=add_generation_prompt, **self.tokens)
        except Exception as error:  # whatever the template's code raises
            raise BadDocument(f"the chat template refuses these messages ({error})") from error
