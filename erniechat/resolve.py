"""Where a model's files are: built in, in a folder or GGUF file, or on the hub."""

from dataclasses import dataclass
from pathlib import Path

from erniechat.errors import ModelNotFoundError, UsageError
from erniechat.hub.failures import check_variables
from erniechat.hub.gguf import find_gguf, recorded_gguf, split_name
from erniechat.hub.listing import GgufOnly, HubModel, find_model
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions
from erniechat.paths import user_path

BUILT_IN = "mini"
GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's files.

    Attributes:
        folder: Has all small files, and the shards unless they are still on the hub; or is the
            one GGUF file, which may be still on the hub.
        hub: What the model is there; None if it is not from there.
    """

    folder: Path
    hub: HubModel | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file, here or on the hub."""
        return self.folder.suffix.lower() == GGUF_SUFFIX and not self.folder.is_dir()


def locate(options: LoadOptions) -> ModelFiles:
    """A model's files; of one on the hub the small ones are fetched, the weights are not.

    Raises:
        UsageError: If the name is no folder, no GGUF file and not of the form owner/name, or if a
            revision is asked of what is not on the hub.
        ModelError: If the model cannot be had.
    """
    local = _locate_here(options)
    if local is None:
        return _locate_on_hub(options)
    if options.revision is not None:
        raise UsageError(
            f'--revision is for a model on the hub, got "{options.revision}" for {options.model}'
        )
    return local


def _locate_on_hub(options: LoadOptions) -> ModelFiles:
    """A checkpoint on the hub, or one of a repository's GGUF files."""
    check_variables()
    name, choice = split_name(options.model)
    if not choice and recorded_gguf(name, options.revision) is None:
        try:
            hub = find_model(name, options.revision, offline=options.offline)
            return ModelFiles(hub.folder, hub)
        except GgufOnly:
            pass
    hub = find_gguf(name, options.revision, choice, options.quant, offline=options.offline)
    return ModelFiles(hub.folder / hub.shards[0].name, hub)


def _locate_here(options: LoadOptions) -> ModelFiles | None:
    """The files of a model that is on this machine by its name; None for one on the hub."""
    if options.model == BUILT_IN:
        return ModelFiles(checkpoint_folder())
    if not options.model:
        raise UsageError('--model must be a folder or owner/name, got ""')
    folder = user_path(options.model)
    try:
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except OSError as exc:
        raise ModelNotFoundError(
            f'"{options.model}" cannot be looked at ({exc.strerror})',
            f"name a folder, a model on the hub as owner/name, or {BUILT_IN}",
        ) from exc
    if is_folder:
        return ModelFiles(folder)
    if is_file:
        if folder.suffix.lower() == GGUF_SUFFIX:
            return ModelFiles(folder)
        raise UsageError(
            f'--model must be a folder, a {GGUF_SUFFIX} file or owner/name, got the file "{folder}"'
        )
    name, _ = split_name(options.model)
    if options.model.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelNotFoundError(
            f'there is no folder "{options.model}"',
            f"name one, a model on the hub as owner/name, or {BUILT_IN}",
        )
    return None
