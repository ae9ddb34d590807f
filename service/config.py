"""What the server around the engine can be asked for, each option with its one default."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WebConfig:
    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 30.0
    served_model_name: tuple[str, ...] = ()  # none: the artifact's
    cors_origins: tuple[str, ...] = ()  # whose pages may call the server
