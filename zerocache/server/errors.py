"""What can go wrong between an application's backend and zerocache.

    SdkError (zerocache/errors.py)
    ├── ApplicationError          a failure the client may see; mutators raise it on purpose
    │   └── InputValidationError  a validator refused an argument
    ├── QueryParseError           a query handler could not make sense of its arguments
    ├── OutOfOrderMutation        a client skipped a mutation id
    ├── MutationAlreadyProcessed  a client sent a mutation id again
    ├── DatabaseTransactionError  the database failed; the cause says how
    └── SchemaMismatchError       the declared schema does not fit the database

Owns these classes and the reduction of any exception to what a client is told. It never lets
anything into ``details`` that is not JSON.
"""

from __future__ import annotations

from typing import Any

import msgspec

from zerocache.errors import SdkError


class ApplicationError(SdkError):
    """Shown to the client: ``message`` and, if it is JSON, ``details``."""

    code = "ZC610"

    def __init__(
        self, message: str, details: Any = None, *, cause: BaseException | None = None
    ) -> None:
        super().__init__(message)
        self.details = details
        if cause is not None:
            self.__cause__ = cause


class InputValidationError(ApplicationError):
    code = "ZC611"

    def __init__(self, message: str, result: Any, *, cause: BaseException | None = None) -> None:
        super().__init__(message, {"type": "InputValidationError", "result": result}, cause=cause)


class QueryParseError(SdkError):
    code = "ZC620"

    def __init__(self, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.details = details


class OutOfOrderMutation(SdkError):
    code = "ZC630"

    def __init__(self, client_id: str, received: int, expected: int) -> None:
        super().__init__(
            f"client {client_id} sent mutation {received} but {expected} is next; "
            "mutations apply in order without gaps, so the client must send the missing ones first"
        )


class MutationAlreadyProcessed(SdkError):
    code = "ZC631"

    def __init__(self, client_id: str, received: int, expected: int) -> None:
        super().__init__(
            f"client {client_id} sent mutation {received} again, {expected} is next; "
            "it was applied before and is ignored"
        )


class DatabaseTransactionError(SdkError):
    code = "ZC640"

    def __init__(self, *, opened: bool, cause: BaseException) -> None:
        stage = "failed" if opened else "could not be opened"
        super().__init__(f"database transaction {stage}: {describe(cause)}")
        self.__cause__ = cause


class SchemaMismatchError(SdkError):
    code = "ZC650"


def describe(error: BaseException) -> str:
    """The text of ``error``, or its class where it has none."""
    return str(error) or type(error).__name__


def as_application_error(error: BaseException) -> ApplicationError:
    """``error`` in the form clients are told about, freed of the database wrapper."""
    if isinstance(error, DatabaseTransactionError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ApplicationError):
        return error
    return ApplicationError(describe(error), getattr(error, "details", None), cause=error)


def details_of(error: BaseException) -> dict[str, Any]:
    """``{"details": …}`` if the error carries any that are JSON, else nothing."""
    details = getattr(error, "details", None)
    if details is None:
        return {}
    try:
        return {"details": msgspec.json.decode(msgspec.json.encode(details))}
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        # Not JSON: the message alone has to do.
        return {}
