"""transformers on a GPU, its forward pass compiled and its cache static: seconds of a decoding step.

Runs in an environment with torch and transformers, without this project: `python static_cache.py JSON` prints JSON.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers


def main(asked: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU")
    dtype = getattr(torch, asked["dtype"])
    config = transformers.AutoConfig.from_pretrained(asked["config"])
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.forward = torch.compile(model.forward, mode="max-autotune", fullgraph=True)
    seconds = {str(n): step(model, n, asked["context"], asked["repeat"]) for n in asked["sequences"]}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"seconds": seconds, "versions": versions}))


@torch.inference_mode()
def step(model: Any, sequences: int, context: int, repeat: int) -> float:
    """Median seconds of one token for each of so many sequences, after `context` tokens of each."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=context + 64)
    tokens = torch.zeros((sequences, 1), dtype=torch.long, device="cuda")
    prompt = torch.zeros((sequences, context), dtype=torch.long, device="cuda")
    model.__class__.forward(model, prompt, past_key_values=cache, use_cache=True)
    place = torch.tensor([context], device="cuda")
    times = []
    for _ in range(repeat + 5):  # the first ones compile and capture
        torch.cuda.synchronize()
        began = time.perf_counter()
        logits = model(tokens, past_key_values=cache, use_cache=True, cache_position=place).logits
        tokens = logits[:, -1:].argmax(-1)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[5:])[len(times[5:]) // 2]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
