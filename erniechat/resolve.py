"""Where a model's files are: built in, in a folder, or on the hub."""

from pathlib import Path

from erniechat.errors import ModelError, ModelNotFoundError, UsageError
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions

BUILT_IN = "mini"
TOKENIZER_FILES = ["*.json", "*.jinja"]
MODEL_FILES = [*TOKENIZER_FILES, "*.safetensors"]


def resolve(options: LoadOptions, *, weights: bool = True) -> Path:
    """The folder that holds a model's files, fetched from the hub if need be.

    Args:
        options: Which model, which revision, and whether the network may be used.
        weights: Also the weights, not only what making a prompt needs.

    Raises:
        UsageError: If the name is neither a folder nor of the form owner/name.
        ModelError: If the model cannot be had.
    """
    if options.model == BUILT_IN:
        return checkpoint_folder()
    folder = Path(options.model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UsageError(f'--model must be a folder or owner/name, got the file "{folder}"')
    if options.model.startswith(("/", ".", "~")) or options.model.count("/") != 1:
        raise ModelNotFoundError(
            f'there is no folder "{options.model}"',
            f"name one, a model on the hub as owner/name, or {BUILT_IN}",
        )
    return _fetch(options, MODEL_FILES if weights else TOKENIZER_FILES)


def _fetch(options: LoadOptions, patterns: list[str]) -> Path:
    """Bring a model from the hub or its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = options.model
    try:
        return Path(
            snapshot_download(
                name,
                revision=options.revision,
                allow_patterns=patterns,
                local_files_only=options.offline,
            )
        )
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
            f'{name} has no revision "{options.revision}"', "leave --revision out for the newest"
        ) from exc
    except HFValidationError as exc:
        raise UsageError(f'--model must be a folder or owner/name, got "{name}"') from exc
    except LocalEntryNotFoundError as exc:
        where = "offline" if options.offline else "the hub cannot be reached"
        raise ModelNotFoundError(
            f"{where}, and {name} is not in the cache",
            "connect once to fetch it, or name a folder",
        ) from exc
    except (HfHubHTTPError, OSError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ModelError(f"{name} could not be fetched ({reason})", "try again later") from exc
