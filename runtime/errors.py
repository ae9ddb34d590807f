"""Every error a user can cause, with what it maps to over HTTP and at the shell.

    GorgonError                      status  exit
    ├── ArtifactError                   500     3   an artifact that is missing, damaged or of another version
    ├── CheckpointError                 500     4   a checkpoint, its config or its heads do not fit
    │   ├── ConfigError                         4   a field of config.json that is not honoured
    │   └── TensorError                         4   a tensor missing, unused, misshapen or not finite
    ├── SelfTestError                   500     5   an exported artifact does not compute what its checkpoint does
    ├── ConfigurationError              500     2   an option of engine or server that cannot work
    ├── RequestError                    400     2   a request that can never be served
    │   ├── ParameterError                      2   a sampling parameter outside its range
    │   ├── PromptError                         2   an empty prompt, or token ids out of range
    │   ├── ContextError                        2   a prompt longer than the context
    │   ├── MemoryBudgetError                   2   a request larger than the whole key-value budget
    │   └── UnknownModelError           404     2   a model by another name than the one that is served
    ├── QueueFullError                  429     1   the waiting queue is full: try again later
    ├── NotReadyError                   503     1   the model is loading, or the server is draining
    └── StepError                       500     1   the model's run failed under this request

A message says what was wrong, where, and what would be right.
"""


class GorgonError(Exception):
    """The root; never raised itself."""

    status = 500
    exit_code = 1


class ArtifactError(GorgonError):
    exit_code = 3


class CheckpointError(GorgonError):
    exit_code = 4


class ConfigError(CheckpointError):
    pass


class TensorError(CheckpointError):
    pass


class SelfTestError(GorgonError):
    exit_code = 5


class ConfigurationError(GorgonError):
    exit_code = 2


class RequestError(GorgonError):
    status = 400
    exit_code = 2


class ParameterError(RequestError):
    pass


class PromptError(RequestError):
    pass


class ContextError(RequestError):
    pass


class MemoryBudgetError(RequestError):
    pass


class UnknownModelError(RequestError):
    status = 404


class QueueFullError(GorgonError):
    status = 429

    def __init__(self, message: str, ends: int = 1) -> None:
        """So many requests have to end before this one can be taken."""
        super().__init__(message)
        self.ends = ends


class NotReadyError(GorgonError):
    status = 503


class StepError(GorgonError):
    @classmethod
    def of(cls, error: Exception) -> GorgonError:
        """An error of ours as it is; any other by its class and words."""
        return error if isinstance(error, GorgonError) else cls(f"{type(error).__name__}: {error}")
