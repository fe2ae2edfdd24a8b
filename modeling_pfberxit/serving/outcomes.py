"""How a request ends when it is not answered, and how errors are kept from ending others."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Busy(RuntimeError):
    """The queue is full; `retry_after` seconds from now it should have room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The engine takes no more requests, or has given up those it had."""


class Late(TimeoutError):
    """The request's deadline passed before it was answered."""


class Failed(RuntimeError):
    """The model could not answer a row."""


def settle(future: Future, result: Any) -> None:
    """Give a future its result or exception, unless it has one or was cancelled."""
    try:
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass


def settle_by(future: Future, function: Callable[[], Any]) -> None:
    """Give a future what a function returns or raises."""
    try:
        settle(future, function())
    except Exception as error:
        settle(future, error)
        del future  # it holds the error, whose traceback holds this frame


def attempt(function: Callable[..., Result], *arguments: Any) -> Result | None:
    """Call one who watches or steers; what it raises is reported, fails nobody's request, and gives None."""
    try:
        return function(*arguments)
    except Exception as error:
        report(error)
        return None


def report(error: BaseException) -> None:
    """Log where something went wrong; not what the error says, which may hold a part of a text."""
    logger.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
