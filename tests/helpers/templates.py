"""Chat templates as they are found in the world: some take less than others, and say so or do not."""

import json
import shutil
from pathlib import Path

from assistant.models import base_model
from assistant.models.base_model import Base

REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATES = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
TURN = "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
LAST = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def each(turn: str, before: str = "") -> str:
    """A template that writes `before`, then every turn."""
    return f"{before}{{% for message in messages %}}{turn}{{% endfor %}}{LAST}"


GEMMA_2 = each(ALTERNATES + TURN, REFUSES_SYSTEM)
LLAMA_2 = (  # a system turn comes first and goes into the user's; all others alternate
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set told = '' %}{% endif %}" + each(ALTERNATES + "{{ told if loop.first else '' }}" + TURN)
)
FIRST_SYSTEM_ONLY = each(
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}" + TURN
)
DROPS_SYSTEM = each("{% if message['role'] != 'system' %}" + TURN + "{% endif %}")
DROPS_REPEATED = each(
    "{% if loop.first or messages[loop.index0 - 1]['role'] != message['role'] %}" + TURN + "{% endif %}"
)
IN_PARTS = each(
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n"
)
TAKES_ALL = each(TURN)
MENDED = {
    "gemma 2": GEMMA_2,
    "llama 2": LLAMA_2,
    "first system only": FIRST_SYSTEM_ONLY,
    "drops system": DROPS_SYSTEM,
    "drops repeated": DROPS_REPEATED,
    "in parts": IN_PARTS,
}
UNUSABLE = {
    "does not end": "{% for message in messages %}" + TURN,
    "is no template": "{{ messages[0]['content'] | no_such_filter }}",
    "refuses everything": "{{ raise_exception('tools are required') }}",
    "forgets everything": "{{ bos_token }}",
}


def with_template(base: Base, folder: Path, template: str | None) -> Base:
    """A copy of a base with another chat template, or with none."""
    shutil.copytree(base.path, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return base_model.find_base(str(folder))
