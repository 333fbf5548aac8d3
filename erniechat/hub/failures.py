"""What can go wrong between here and the hub, in words for the user; and what is worth a retry."""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from erniechat.errors import (
    CheckpointError,
    DiskLimitError,
    ErnieChatError,
    ModelError,
    ModelNotFoundError,
    UsageError,
)

NUM_TRIES = 6  # to ask for something small
NUM_CONNECTS = 3  # of these where nothing answers at all: whoever is not online learns it in 2 s
NUM_DOWNLOAD_TRIES = 9  # in a row without one new byte: two minutes without a network
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
FULL = (errno.ENOSPC, errno.EDQUOT)
SILENT = ("ConnectError", "ConnectTimeout")  # of the HTTP library: nobody answers
ASKED_WRONGLY = ("LocalProtocolError", "UnsupportedProtocol")
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)

ResultT = TypeVar("ResultT")


class Stopped(Exception):
    """A download was told to stop; what it has stays for the next one."""


def transport_errors() -> tuple[type[Exception], ...]:
    """The errors of the HTTP library that huggingface_hub uses: its versions differ in which."""
    return (*_errors_named(("TransportError",)), ConnectionError, TimeoutError)


def _errors_named(names: tuple[str, ...]) -> tuple[type[Exception], ...]:
    from huggingface_hub import get_session

    library = sys.modules[type(get_session()).__module__.split(".")[0]]
    return tuple(getattr(library, name) for name in names)


def check_variables() -> None:
    """Refuse variables that huggingface_hub fails on as soon as it is imported.

    Raises:
        UsageError: With what it says of the value.
    """
    try:
        import huggingface_hub.constants  # noqa: F401  # reads them
    except ValueError as exc:
        raise UsageError(
            f"huggingface_hub cannot read its variables ({exc})",
            "correct or unset HF_ENDPOINT, HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT",
        ) from exc


def _check_client() -> None:
    """Refuse an address, a proxy, certificates or a token that no request can be made with.

    Raises:
        UsageError: With what the HTTP library says, and never the token.
    """
    from huggingface_hub import constants, get_session, get_token

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            "the token for the hub has characters that no token has", "set HF_TOKEN anew"
        )
    try:
        url = get_session().build_request("GET", constants.ENDPOINT).url
    except Exception as exc:  # of an address, a proxy that needs a package, certificates
        reason = " ".join(str(exc).split())
        raise UsageError(
            f"the hub cannot be asked ({reason})", "check HF_ENDPOINT, proxies and SSL_CERT_FILE"
        ) from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(
            f'HF_ENDPOINT must be an http or https address, got "{constants.ENDPOINT}"'
        )


def is_passing(exc: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(exc, OfflineModeIsEnabled):
        return False
    if isinstance(exc, HfHubHTTPError):
        return _status(exc) in PASSING_STATUSES
    return isinstance(exc, transport_errors()) and not isinstance(exc, _errors_named(ASKED_WRONGLY))


def wait_seconds(exc: Exception, num_failures: int) -> float:
    """How long to wait after so many failures in a row: what the hub asks for, else ever longer."""
    response = getattr(exc, "response", None)
    asked = str(response.headers.get("Retry-After", "")) if response is not None else ""
    seconds = float(asked) if asked.isdigit() else FIRST_WAIT_SECONDS * 2 ** (num_failures - 1)
    return min(seconds, LONGEST_WAIT_SECONDS)


def patiently(call: Callable[[], ResultT]) -> ResultT:
    """The result of a call to the hub, made again where the failure may pass."""
    num_failures = 0
    while True:
        try:
            return call()
        except Exception as exc:
            num_failures += 1
            is_silent = isinstance(exc, _errors_named(SILENT))
            most = NUM_CONNECTS if is_silent else NUM_TRIES
            if num_failures >= most or not is_passing(exc):
                raise
            time.sleep(wait_seconds(exc, num_failures))


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Within: what huggingface_hub raises becomes an error of ours.

    Raises:
        ModelNotFoundError: If there is no such model or revision, or none for this user.
        ModelError: If the hub does not give it.
        DiskLimitError: If the disk is full.
        UsageError: If the name cannot be one, or variables keep it from being asked for.
    """
    _check_client()
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (ErnieChatError, Stopped):
        raise
    except GatedRepoError as exc:
        raise ModelNotFoundError(
            f"{name} asks for consent on its page", "give it there, then run `hf auth login`"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise ModelNotFoundError(
            f'no model "{name}" on the hub, or it is private',
            "check the name; for a private one set HF_TOKEN or run `hf auth login`",
        ) from exc
    except RevisionNotFoundError as exc:
        raise ModelNotFoundError(
            f'{name} has no revision "{revision}"', "leave --revision out for the newest"
        ) from exc
    except HFValidationError as exc:
        raise UsageError(f'--model must be a folder or owner/name, got "{name}"') from exc
    except OfflineModeIsEnabled as exc:
        raise offline_error(name, "HF_HUB_OFFLINE is set") from exc
    except LocalEntryNotFoundError as exc:
        raise unreachable_error(name) from exc
    except HfHubHTTPError as exc:
        raise _status_error(name, exc) from exc
    except transport_errors() as exc:
        raise unreachable_error(name) from exc
    except OSError as exc:
        raise _disk_error(name, exc) from exc


class HubUnreachableError(ModelNotFoundError):
    """The hub was not asked or did not answer; what the cache holds may still serve."""


def offline_error(name: str, why: str = "--offline") -> HubUnreachableError:
    """The model is not here, and the network may not be used."""
    return HubUnreachableError(
        f"offline ({why}), and {name} is not in the cache",
        "connect once to fetch it, or name a folder",
    )


def unreachable_error(name: str) -> HubUnreachableError:
    """The hub does not answer."""
    return HubUnreachableError(
        f"the hub cannot be reached, and {name} is not complete in the cache",
        "connect to fetch it (what is here is kept), or name a folder",
    )


def _status(exc: Exception) -> int:
    return int(getattr(getattr(exc, "response", None), "status_code", 0) or 0)


def _status_error(name: str, exc: Exception) -> ModelError:
    status = _status(exc)
    if status in (401, 403):
        return ModelNotFoundError(
            f"the hub denies access to {name} (status {status})",
            "set HF_TOKEN to a token that may read it, or run `hf auth login`",
        )
    if status == 429:
        return ModelError(
            f"the hub has had too many requests from here (status 429) for {name}",
            "wait some minutes and start again (what is here is kept), or log in: `hf auth login`",
        )
    if status == 416:
        return CheckpointError(f"a file of {name} is shorter than the hub says", "try again later")
    what = f"status {status}" if status else str(exc).strip().splitlines()[0]
    return ModelError(
        f"{name} could not be fetched ({what})", "start again later; what is here is kept"
    )


def _disk_error(name: str, exc: OSError) -> ErnieChatError:
    if exc.errno in FULL:
        return DiskLimitError(
            f"the disk is full while fetching {name}",
            "free some space and start again: what is here is kept",
        )
    reason = exc.strerror or (str(exc).strip() or type(exc).__name__).splitlines()[0]
    return ModelError(f"{name} could not be fetched ({reason})", "try again later")
