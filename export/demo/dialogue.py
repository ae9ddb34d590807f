"""The words of pydoc-chat: its chat template, the phrasings of a question, and the rows of data.jsonl.

The prompt and the answer (" answer" and the end token) are always tokenized apart, in training as in serving.
"""

import json
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("data.jsonl")
MODEL = Path(__file__).with_name("model")
BOS, EOS, UNK = "<s>", "</s>", "<unk>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PREFIX = BOS + SYSTEM

# vicuna v1.1, as FastChat renders it: a leading system message replaces the default one.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
    f'{{% else %}}{{{{ "{SYSTEM}" }}}}{{% set turns = messages %}}{{% endif %}}'
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('roles are user and assistant, and system for the first message') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

TRAINED_PHRASINGS = (
    "What does {} do?",
    "What is {}?",
    "Explain {}.",
    "What is {} used for?",
    "Tell me about {} in Python.",
    "Describe {}.",
    "what does {} do",
    "what is {}",
    "explain {}",
    "{}",
    "{}?",
    "What does {} do in Python?",
    "Can you explain {}?",
    "Please explain what {} does.",
    "Tell me what {} does",
    "What is the purpose of {}?",
    "Could you tell me what {} is?",
    "I do not know {}, what is it for?",
    "In Python, what is {}?",
    "help {}",
)
HELD_OUT_PHRASINGS = (
    "What does the Python object {} do?",
    "Please describe {}",
    "Can you tell me what {} is used for?",
    "tell me about {}",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One standard-library object: the name users know it by, its answer, and whether training leaves it out."""

    name: str
    answer: str
    heldout: bool


def load_entries(path: Path = DATA) -> list[Entry]:
    """The rows of data.jsonl, without its header line."""
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()[1:]]


def turn(phrasing: str, name: str) -> str:
    """What follows the system text in a single-turn prompt."""
    return f" USER: {phrasing.format(name)} ASSISTANT:"
