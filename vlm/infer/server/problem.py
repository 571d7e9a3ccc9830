"""What a client did wrong, as OpenAI's API tells it. Knows no web framework."""

from typing import Any

from vlm.errors import VLMError

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(VLMError):
    """A request that is refused: its message says what was seen, what is wanted and what would help."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None, retry_after: int | None = None):
        """State the refusal.

        Args:
            message: One line.
            status: HTTP status.
            param: The field of the request that it is about.
            code: OpenAI's name of the case, if it has one.
            retry_after: Seconds after which the same request may succeed.
        """
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


def in_words_of_the_api(error: VLMError, length_field: str) -> str:
    """An error's message, with the answer's length by the name that the client gave it."""
    return str(error).replace("max_new_tokens", length_field)


def error_body(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
