"""Requests at random: penalties, biases, stops, grammars, in any company, and a tokenizer that can write JSON."""

import json
import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.params import SamplingParams, StructuredOutputs
from tests.fake import VOCAB

PIECES = [
    *'{}[]:,"\\-.+ \n0123456789abcdefghijklmnopqrstuvwxyzEABC', '{"', '"}', '":', '",', '","', '[{', "}]", "}}", "[]",
    "{}", "true", "false", "null", "00", "12", "ab", "abc", "th", "the", "in", "er", "on", '": ', ", ", "\\n", '\\"',
    "ue", "al", '"a', '"b', "a+", ". ",
]  # fmt: skip


def json_tokenizer() -> Tokenizer:
    """As many tokens as the fake model has: those that JSON takes, some of them long, and three special ones."""
    pieces = [*PIECES, *(chr(0xE0 + i) for i in range(VOCAB - 3 - len(PIECES)))]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *pieces])}
    assert len(vocabulary) == VOCAB
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["boolean", "integer", "enum", "string", "null", "pattern", "number", "const"]
    match rng.choice(kinds if depth > 2 else [*kinds, "object", "object", "array", "anyOf"]):
        case "enum":
            return {"enum": rng.sample(["ab", 12, None, True, "the", [1, 2], {"a": 0}, "x\ny"], rng.randint(1, 4))}
        case "const":
            return {"const": rng.choice(["abc", 0, False, [], {"in": "on"}])}
        case "integer":
            return {"type": "integer"} | rng.choice([{}, {"minimum": 3, "maximum": 120}, {"exclusiveMinimum": -5}])
        case "string":
            return {"type": "string"} | rng.choice([{}, {"maxLength": 5}, {"minLength": 2, "maxLength": 3}])
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^a+b?$", "^(the|in)[0-9]{1,3}$", "^[a-c]*$"])}
        case "array":
            return {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(1, 3)}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
        case "object":
            names = rng.sample(["a", "b", "the", "in", "x"], rng.randint(0, 3))
            properties = {name: random_schema(rng, depth + 1) for name in names}
            required = rng.sample(names, rng.randint(0, len(names)))
            return {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": rng.random() < 0.2,
            }
        case kind:
            return {"type": kind}


def random_outputs(rng: random.Random) -> StructuredOutputs:
    match rng.choice(["json", "json", "json", "json_object", "regex", "choice", "grammar"]):
        case "json":
            return StructuredOutputs(json=json.dumps(random_schema(rng)))
        case "json_object":
            return StructuredOutputs(json_object=True)
        case "regex":
            return StructuredOutputs(regex=rng.choice(["[ab]{3,9}", "(the|on)+[0-9]", "a*", "[^a-m]+", "(12|ab)?x{2}"]))
        case "choice":
            return StructuredOutputs(choice=tuple(rng.sample(["the", "then", "ab", "abc", '"', "x y", "0"], 3)))
        case _:
            return StructuredOutputs(
                grammar=rng.choice(
                    ['start: "[" start "]" | "a" start "b" | /[0-9]/', "start: (W ", ")* W\nW: /[a-z]{1,4}/"]
                )
            )


def random_params(rng: random.Random, vocab: int = VOCAB, guided: float = 0.6, **fixed: Any) -> SamplingParams:
    """Each feature now and then, alone or with others."""
    values: dict[str, Any] = {
        "max_tokens": rng.choice([1, 5, 20, 40]),
        "temperature": rng.choice([0.0, 0.0, 0.7, 1.5]),
        "seed": rng.randrange(1000),
    }
    token = lambda: rng.randrange(2, vocab)  # noqa: E731

    def maybe(chance: float, **options: Any) -> None:
        if rng.random() < chance:
            values.update(options)

    maybe(0.2, top_k=rng.randint(1, 20))
    maybe(0.2, top_p=rng.random() * 0.9 + 0.05)
    maybe(0.1, min_p=rng.random())
    maybe(0.3, presence_penalty=rng.uniform(-2, 2))
    maybe(0.3, frequency_penalty=rng.uniform(-2, 2))
    maybe(0.3, repetition_penalty=rng.uniform(0.5, 2))
    maybe(0.3, logit_bias={token(): rng.uniform(-100, 100) for _ in range(rng.randint(1, 4))})
    maybe(0.2, min_tokens=rng.randint(1, values["max_tokens"]))
    maybe(0.3, logprobs=rng.randint(0, 5))
    maybe(0.2, stop=tuple(rng.choices(["a", "b", "th", '"', "1", ": ", "on", "zz"], k=rng.randint(1, 3))))
    maybe(0.2, stop_token_ids=tuple(token() for _ in range(rng.randint(1, 3))))
    maybe(0.5, include_stop_str_in_output=True)
    if rng.random() < guided:
        values["structured_outputs"] = random_outputs(rng)
    else:
        maybe(0.2, ignore_eos=True)
    return SamplingParams(**(values | fixed))
