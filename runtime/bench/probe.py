"""Small requests beside a load: how many a second a route answers meanwhile, one after the other on one connection."""

import http.client
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

from runtime.errors import StepError


@dataclass(frozen=True, slots=True)
class Probed:
    path: str
    answered: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


class Probe:
    """Asks for `path` from __enter__ to __exit__, in a thread; raises StepError at the end if it was refused once."""

    def __init__(self, url: str, path: str) -> None:
        self._place, self._path = urlsplit(url).netloc, path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._answered, self._failure = 0, ""

    def __enter__(self) -> "Probe":
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.result = Probed(self._path, self._answered, time.perf_counter() - self._began)
        if error is None and (self._failure or not self._answered):
            raise StepError(f"{self._path} was not answered under load: {self._failure or 'nothing came'}")

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._place, timeout=60)
        try:
            while not self._over.is_set():
                connection.request("GET", self._path)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self._failure = f"status {response.status}"
                    return
                self._answered += 1
        except (OSError, http.client.HTTPException) as error:
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
