"""Chat templates and special tokens: the text and the tokens that Hugging Face's own code makes of them."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from runtime.errors import ArtifactError, PromptError
from runtime.prompts import Prompts
from tests.fake import fake_manifest, fake_tokenizer

DEMO = Path(__file__).parents[2] / "export" / "demo" / "model"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": ' "naïve" 🙂\n'},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "{{ bos_token }} {% if %}"},
]
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
    # blocks are trimmed and their lines' indents taken away
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n[INST] {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}{{ undefined_thing }}.",
    "{{ messages[0].content }}{% if add_generation_prompt %} ASSISTANT:{% endif %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_as_transformers_does(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template
    [expected], _ = render([CHAT], chat_template=template, add_generation_prompt=True, **SPECIAL)
    manifest = fake_manifest(chat_template=template, special=SPECIAL)
    assert Prompts(manifest, fake_tokenizer()).render(CHAT) == expected


def test_tokens_are_those_of_transformers() -> None:
    """A template writes its special tokens itself; a raw prompt gets the tokenizer's."""
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(DEMO)
    manifest = fake_manifest(chat_template=theirs.chat_template, special=SPECIAL)
    prompts = Prompts(manifest, Tokenizer.from_file(str(DEMO / "tokenizer.json")))
    question = "What does os.path.join do? "
    chat = [{"role": "user", "content": question}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert prompts.question(question) == prompts.chat(chat) == expected
    assert prompts.raw(question) == theirs(question).input_ids
    assert prompts.raw(question).count(theirs.bos_token_id) == expected.count(theirs.bos_token_id) == 1


def test_a_template_can_refuse() -> None:
    prompts = Prompts(fake_manifest(chat_template="{{ raise_exception('users first') }}"), fake_tokenizer())
    with pytest.raises(PromptError, match="users first"):
        prompts.question("abc")


@pytest.mark.parametrize(
    "code", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_a_template_is_in_a_sandbox(code: str) -> None:
    prompts = Prompts(fake_manifest(chat_template=code), fake_tokenizer())
    with pytest.raises(PromptError):
        prompts.question("abc")


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(ArtifactError, match="line 2"):
        Prompts(fake_manifest(chat_template="\n{% if %}"), fake_tokenizer())


def test_a_template_that_raises_anything_refuses_the_messages() -> None:
    prompts = Prompts(fake_manifest(chat_template="{{ messages[0]['content'] + 1 }}"), fake_tokenizer())
    with pytest.raises(PromptError, match="chat template of fake refuses"):
        prompts.question("x")
