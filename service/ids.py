"""What requests and answers are called."""

import random

_RANDOM = random.Random()  # seeded by the system once: to ask it each time gives the GIL away, for a step of the engine


def new_id() -> str:
    """32 hexadecimal digits."""
    return f"{_RANDOM.getrandbits(128):032x}"
