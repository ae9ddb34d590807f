"""What only a server refuses; the rest is in runtime/errors.py.

GorgonError                      status
└── DeadlineError                   504   the answer was not complete within --request-timeout
"""

from runtime.errors import GorgonError


class DeadlineError(GorgonError):
    status = 504
