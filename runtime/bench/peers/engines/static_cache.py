"""transformers, its forward pass compiled and its cache static: seconds of a decoding step, on a GPU.

Runs in an environment with torch and transformers, without this project: `python static_cache.py JSON` prints JSON.
On a CPU the same pass is traced whole and run uncompiled, which shows that it works and says nothing of its speed.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers

WARM = 5  # steps that compile and capture


def main(asked: dict[str, Any]) -> None:
    device = asked["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU")
    config = transformers.AutoConfig.from_pretrained(asked["config"])
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, asked["dtype"])).eval()
    how: dict[str, Any] = {"mode": "max-autotune"} if device == "cuda" else {"backend": "eager"}
    model.forward = torch.compile(model.forward, fullgraph=True, **how)
    seconds = {str(n): step(model, n, asked["context"], asked["repeat"]) for n in asked["sequences"]}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"seconds": seconds, "versions": versions}))


@torch.inference_mode()
def step(model: Any, sequences: int, context: int, repeat: int) -> float:
    """Median seconds of one token for each of so many sequences, after `context` tokens of each."""
    device, steps = model.device, repeat + WARM
    cache = transformers.StaticCache(config=model.config, max_cache_len=-(-(context + steps) // 64) * 64)
    tokens = torch.zeros((sequences, 1), dtype=torch.long, device=device)
    prompt = torch.zeros((sequences, context), dtype=torch.long, device=device)
    model.__class__.forward(model, prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    times = []
    for _ in range(steps):
        _wait(device)
        began = time.perf_counter()
        logits = model(tokens, past_key_values=cache, use_cache=True).logits
        tokens = logits[:, -1:].argmax(-1)
        _wait(device)
        times.append(time.perf_counter() - began)
    if int(cache.get_seq_length()) != context + steps:
        raise SystemExit(f"the cache holds {cache.get_seq_length()} tokens, not {context + steps}: no step was one")
    return sorted(times[WARM:])[repeat // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
