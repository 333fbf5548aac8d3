"""Every setting, once: frozen, checked on creation; one table feeds flags, files and /set.

A setting is a dataclass field made by `setting()`; `OPTIONS` collects them all. The flag is
``--temperature``, the environment variable ``ERNIECHAT_TEMPERATURE``, the key in config.toml
``temperature``, and in the REPL, where ``live`` is true, ``/set temperature``.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from erniechat.errors import UsageError
from erniechat.option import Option, plain_type, setting

MAX_THREADS = 1024  # more than any machine has cores; tens of thousands cannot be started
MAX_FACTOR = 5.0  # of logits; what is used lies below 2, and 08 or 11 is a dot forgotten


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Which model, and how it is held."""

    model: str = setting(
        "mini", "hub name, folder, FILE.gguf, or mini (built in)", metavar="NAME", short="-m"
    )
    revision: str | None = setting(None, "branch, tag or commit on the hub", metavar="REV")
    quant: str = setting(
        "auto",
        "how weights are held; auto: as the checkpoint was quantized, else nf4",
        choices=("auto", "bf16", "int8", "nf4", "fp4"),
    )
    device: str = setting("auto", "where the model runs", choices=("auto", "cpu", "cuda"))
    dtype: str = setting(
        "bfloat16", "floating-point type of activations", choices=("bfloat16", "float32")
    )
    ctx: int | None = setting(
        None,
        "context length in tokens; default: at most 32768; on a GPU experts make room for more",
        low=16,
    )
    kernels: str = setting(
        "auto", "kernel backend; auto takes the fastest there is", metavar="NAME"
    )
    gpu_memory: str | None = setting(
        None,
        "most that this may take of the GPU; default: what is free",
        metavar="SIZE",
        is_size=True,
    )
    cpu_memory: str | None = setting(
        None,
        "most that this may take of the RAM; default: what is free",
        metavar="SIZE",
        is_size=True,
    )
    profile: bool = setting(True, "place experts by what earlier chats used most")
    adapt: bool = setting(
        True, "keep the experts that a conversation uses most in the fastest memory"
    )
    read_ahead: bool = setting(
        False, "read experts from disk on a guess of the next layer's choice, before it is made"
    )
    cpu_share: float | None = setting(
        None,
        "share of a token's experts in RAM that the CPU runs while the GPU reads the others; "
        "default: as measured",
        low=0.0,
        high=1.0,
    )
    prompt_cpu_share: float | None = setting(
        None, "the same of a prompt's; default: as measured", low=0.0, high=1.0
    )
    stage: bool = setting(
        True, "bring experts to the GPU or, from disk, to RAM before a prompt comes to their layer"
    )
    keep_speeds: bool = setting(
        True, "keep the measured speeds of this machine; without, each start measures them"
    )
    threads: int | None = setting(
        None, "CPU threads; default: physical cores", low=1, high=MAX_THREADS
    )
    offline: bool = setting(False, "never use the network")
    copy: bool = setting(True, "keep a quantized copy on disk and start from it")
    session_cache: str = setting(
        "4GiB",
        "most disk for what was read of saved chats, so that they go on at once; 0B keeps nothing",
        metavar="SIZE",
        is_size=True,
    )
    discard_originals: bool = setting(
        False, "of a model on the hub: delete each file once its weights are in the copy"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are chosen. None means: what the checkpoint's generation_config says."""

    temperature: float | None = setting(
        None,
        "randomness; 0 always takes the likeliest token",
        low=0.0,
        high=MAX_FACTOR,
        live=True,
    )
    top_k: int | None = setting(None, "choose among the K likeliest; 0 is off", low=0, live=True)
    top_p: float | None = setting(
        None, "choose among the likeliest that sum to P", above=0.0, high=1.0, live=True
    )
    min_p: float | None = setting(
        None,
        "drop tokens less likely than P times the likeliest; 0 is off",
        low=0.0,
        high=1.0,
        live=True,
    )
    repetition_penalty: float | None = setting(
        None,
        "above 1: tokens already seen are less likely",
        above=0.0,
        high=MAX_FACTOR,
        live=True,
    )
    max_tokens: int | None = setting(
        None, "most tokens of a reply; default: what the context holds", low=1, live=True
    )
    think_budget: int | None = setting(
        None, "most tokens of thinking; then the answer begins", low=0, live=True
    )
    seed: int | None = setting(None, "repeat a reply", low=0, high=2**63 - 1, live=True)

    def __post_init__(self) -> None:
        check(self)

    def over(self, defaults: "SamplingOptions") -> "SamplingOptions":
        """These options, with what is None taken from defaults."""
        values = {
            f.name: getattr(defaults, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) is None
        }
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, slots=True)
class DisplayOptions:
    """What is shown, and how."""

    thoughts: str = setting(
        "auto",
        "show the model's thinking; auto: summary on a terminal, none elsewhere",
        choices=("auto", "full", "summary", "none"),
        live=True,
    )
    think: str = setting(
        "auto", "whether the model thinks", choices=("auto", "on", "off"), live=True
    )
    color: str = setting("auto", "colours", choices=("auto", "always", "never"))
    markdown: bool = setting(True, "draw answers as Markdown on a terminal", live=True)
    plain: bool = setting(False, "no cursor motion, no redrawing, no Markdown")
    screen_reader: bool = setting(False, "whole sentences and paragraphs, as with --plain")
    stats: bool = setting(False, "after an answer: tokens, times, context and memory, on stderr")
    sanitize: bool = setting(False, "make control characters visible in pipes too")
    quiet: bool = setting(False, "nothing but the answer and errors", short="-q")
    verbose: bool = setting(False, "say more on stderr; -vv as --log -", short="-v")
    log: str | None = setting(
        None,
        "append what is done, and errors in full, never what is said; - is stderr",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The conversation: its system prompt, what is kept on disk, what does not fit."""

    system: str | None = setting(
        None, "system prompt, or the file that holds it", metavar="TEXT|@FILE"
    )
    save: bool | None = setting(
        None, "keep the conversation on disk; default: in the chat yes, for one answer no"
    )
    history: bool = setting(True, "keep what was typed for the next chat")
    overflow: str = setting(
        "refuse",
        "a prompt beyond the context: refuse it, or keep its head, its tail, or both ends",
        choices=("refuse", "head", "tail", "middle"),
    )
    encoding: str = setting("utf-8", "encoding of stdin", metavar="NAME")
    errors: str = setting("refuse", "what is no text in stdin", choices=("refuse", "replace"))
    stdin_timeout: float | None = setting(
        None, "give up (status 2) on a stdin silent for so long", above=0.0, metavar="SECONDS"
    )
    timeout: float | None = setting(
        None, "give up after so many seconds (status 124)", above=0.0, metavar="SECONDS"
    )

    def __post_init__(self) -> None:
        check(self)
        try:
            "".encode(self.encoding)
        except LookupError as exc:
            raise UsageError(
                f'--encoding must be a text encoding that Python knows, got "{self.encoding}"'
            ) from exc


def _options_of(owner: type) -> list[Option]:
    hints = typing.get_type_hints(owner)
    return [
        Option(f.name, owner, plain_type(hints[f.name]), f.default, f.metadata["spec"])
        for f in dataclasses.fields(owner)
    ]


OPTIONS: Mapping[str, Option] = {
    option.name: option
    for owner in (LoadOptions, SamplingOptions, DisplayOptions, ChatOptions)
    for option in _options_of(owner)
}


def check(options: LoadOptions | SamplingOptions | DisplayOptions | ChatOptions) -> None:
    """Check every value of an options object against its rule.

    Raises:
        UsageError: For the first value that breaks its rule.
    """
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if value is not None:
            OPTIONS[f.name].check(value)


OptionsT = TypeVar("OptionsT", LoadOptions, SamplingOptions, DisplayOptions, ChatOptions)


def build(owner: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """An options object from a mapping that may hold other objects' settings too."""
    names = {f.name for f in dataclasses.fields(owner)}
    return owner(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True, slots=True)
class Structure:
    """What the answer must be: JSON of a schema, or a text of a grammar or regular expression."""

    kind: Literal["json_schema", "grammar", "regex"]
    text: str

    @property
    def flag(self) -> str:
        """The flag that asks for it."""
        return "--" + self.kind.replace("_", "-")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What `erniechat bench` measures.

    Attributes:
        prompt_tokens: Tokens of the random prompt that is read.
        new_tokens: Tokens that are written after it.
        runs: Timed runs, after one that is not counted.
        synthetic: Folder with a config.json; random weights of that shape take the model's place.
        layers: Only this many layers of the synthetic model; None is all.
        quality: Text file on which perplexity is measured instead of speed.
        ab: Settings to compare with those given, as ``name=value,name=value``; None compares
            nothing.
        json: Print the numbers as one JSON object instead of a table.
    """

    prompt_tokens: int = 512
    new_tokens: int = 128
    runs: int = 5
    synthetic: str | None = None
    layers: int | None = None
    quality: str | None = None
    ab: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "runs", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f'{flag} must be a whole number at least 1, got "{value}"')
        if self.layers is not None and self.synthetic is None:
            raise UsageError("--layers needs --synthetic CONFIG_DIR")
        if self.ab is not None and self.quality is not None:
            raise UsageError("--ab compares speeds, not --quality; run it for each setting")
        if self.quality is not None and self.synthetic is not None:
            raise UsageError(
                "--quality and --synthetic contradict each other; random weights"
                " have no quality to measure"
            )
