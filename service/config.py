"""What the server around the engine can be asked for, each option with its one default."""

from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class WebConfig:
    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 30.0
    served_model_name: tuple[str, ...] = ()  # none: the artifact's
    cors_origins: tuple[str, ...] = ()  # whose pages may call the server
    max_body_bytes: int = 16 << 20
    read_timeout: float = 30.0  # seconds for a request's head, and for its body, 0: none
    write_timeout: float = 30.0  # seconds in which a client has to read something, 0: none
    request_timeout: float = 0.0  # seconds, 0: none
    stream_interval: float = 0.02  # seconds between two events of an answer, but for the last one
    api_key_file: Path | None = None  # None: no key is needed
    max_requests_per_key: int = 0  # at the same time, 0: no limit
    log_requests: bool = False
    otlp_traces_endpoint: str | None = None  # where spans go, None: there are none

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        if self.max_body_bytes < 1:
            raise ConfigurationError(f"max_body_bytes is {self.max_body_bytes}: it has to be at least 1")
        if self.max_requests_per_key < 0:
            raise ConfigurationError(f"max_requests_per_key is {self.max_requests_per_key}: 0 for no limit, or more")
        if self.max_requests_per_key and self.api_key_file is None:
            raise ConfigurationError("max_requests_per_key needs api_key_file: without it there are no keys")
