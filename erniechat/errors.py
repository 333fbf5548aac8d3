"""Every error that a user can see, each with the exit status it ends the program with.

ErnieChatError            1    a bug, or a file that cannot be written
├── UsageError            2    a flag, a setting, an input file
├── ModelError            3    the model cannot be had or read
│   ├── ModelNotFoundError
│   ├── UnsupportedModelError
│   └── CheckpointError
├── MemoryLimitError      4    does not fit into memory
├── DiskLimitError        4    does not fit on the disk
├── ContextLengthError    5    the prompt is longer than the context
├── StructureError        6    the answer breaks the asked-for structure
└── TimeLimitError        124  --timeout has passed
"""


class ErnieChatError(Exception):
    """An error whose text is written for the user: value, rule, way out, on one line.

    Args:
        message: What happened, with the offending value and the rule it broke.
        hint: What to do about it; printed after the message on the same line.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint


class UsageError(ErnieChatError):
    """A flag, a setting or an input file is wrong."""

    exit_status = 2


class ModelError(ErnieChatError):
    """The model cannot be had or read."""

    exit_status = 3


class ModelNotFoundError(ModelError):
    """No model of that name on the hub, in the cache or on disk."""


class UnsupportedModelError(ModelError):
    """The checkpoint is of a kind that this program does not run."""


class CheckpointError(ModelError):
    """The checkpoint's files are damaged, incomplete or do not fit together."""


class MemoryLimitError(ErnieChatError):
    """The model or the conversation does not fit into the memory that it may use."""

    exit_status = 4


class DiskLimitError(ErnieChatError):
    """The download or the quantized copy does not fit on the disk."""

    exit_status = 4


class ContextLengthError(ErnieChatError):
    """The prompt is longer than the context."""

    exit_status = 5


class StructureError(ErnieChatError):
    """The answer breaks the structure that was asked for."""

    exit_status = 6


class TimeLimitError(ErnieChatError):
    """The time limit has passed."""

    exit_status = 124
