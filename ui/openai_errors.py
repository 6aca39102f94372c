"""OpenAI's errors: the shape of their bodies, and which type and code each kind of refusal has.

https://platform.openai.com/docs/guides/error-codes; where OpenAI has no code for a case, there is none here either.
"""

from collections.abc import Mapping
from typing import Any

from feedback.errors import NotFound, Refused, TooLong

STATUSES = {422: 400}  # what OpenAI answers where others say something else
INVALID = "invalid_request_error"
UNREADABLE = "unsupported_content_type"
WRONG_VALUE, WRONG_TYPE = "invalid_value", "invalid_type"
# By status: the type, and the usual code.
USUAL = {
    401: (INVALID, "invalid_api_key"),
    403: ("permission_error", None),
    404: (INVALID, "unknown_url"),
    405: (INVALID, "method_not_supported"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
# By the kind of pydantic's validation error; what is not here is a value of the wrong type.
VALIDATION = {
    "json_invalid": None,
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "too_long": "array_above_max_length",
    "literal_error": WRONG_VALUE,
}


class Unknown(NotFound):
    """No model has that name."""


class ContextTooLong(Refused):
    """A conversation does not fit into what the model reads: a window of so many tokens, or `longest` for a prompt."""

    def __init__(self, error: TooLong, window: int, longest: int, param: str, is_cut: bool) -> None:
        ways = "" if is_cut else ', or send "truncation": "auto" to leave out the oldest'
        super().__init__(  # LangChain looks for the words of the first sentence, LiteLLM for those of the second
            f"The prompt is too long. This model's maximum context length is {window} tokens, of which {longest} are "
            f"for the {param}. However, your {param} resulted in {error.tokens} tokens. Please reduce the length of "
            f"the {param}{ways}.",
            param,
        )


OWN_CODES = {ContextTooLong: "context_length_exceeded", Unknown: "model_not_found"}


def is_for(path: str) -> bool:
    """Whether clients of a path expect OpenAI's shape."""
    return path == "/v1" or path.startswith("/v1/")


def body(status: int, sentence: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error, and of the event by which a stream breaks off."""
    kind, usual = USUAL.get(status, ("server_error" if status >= 500 else INVALID, None))
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code or usual}}


def code_of(error: Exception) -> str | None:
    """The code of a refusal, where it has one of its own."""
    usual = WRONG_VALUE if isinstance(error, Refused) and error.param else None
    return next((code for kind, code in OWN_CODES.items() if isinstance(error, kind)), usual)


def param_of(error: Exception) -> str | None:
    """The parameter that a refusal is about, if it is about one."""
    return getattr(error, "param", None)


def named(error: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The code of one of pydantic's validation errors, and the parameter it is about: messages[0].content."""
    if error["type"] == "json_invalid":
        return None, None
    where = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in error["loc"][1:])
    return VALIDATION.get(error["type"], WRONG_TYPE), where.removeprefix(".") or None
