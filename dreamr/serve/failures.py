"""What a client is told of a failure; what it is not told goes to the log, once."""

from __future__ import annotations

import logging

from dreamr.errors import ActorLost, TooLong, Unable
from dreamr.serve.errors import ApiError, internal, refused, unavailable

log = logging.getLogger(__name__)


def api_error(error: Exception) -> ApiError:
    """The error as a client gets it."""
    match error:
        case ApiError():
            return error
        case ActorLost():
            log.error("the target was lost: %s", error)
            return unavailable("the target model was lost and did not come back: ask again later.")
        case TooLong():
            return refused("messages", str(error), "context_length_exceeded")
        case Unable():
            return refused("method", f"this server's models cannot do that method: {error}.")
        case _:
            log.error("a request failed", exc_info=error)
            return internal()
