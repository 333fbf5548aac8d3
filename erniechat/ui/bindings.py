"""What each key does in the prompt, and where a message ends."""

from prompt_toolkit.application import get_app
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from erniechat.ui.paste import Folds

QUOTES = '"""'
# How terminals that can tell Shift-Enter from Enter send it; theirs to switch on, not ours.
SHIFT_ENTER = ("\x1b[13;2u", "\x1b[27;2;13~")


def know_shift_enter() -> None:
    """Let Shift-Enter be read as Alt-Enter."""
    for sequence in SHIFT_ENTER:
        ANSI_SEQUENCES[sequence] = (Keys.Escape, Keys.ControlM)


def is_open(text: str) -> bool:
    """Whether a message goes on on the next line: an open triple quote."""
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) == 1


def unquoted(text: str) -> str:
    """A message without the triple quotes around it."""
    inner = text.strip()
    if inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES):
        return inner[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def editing_keys(folds: Folds) -> KeyBindings:
    """The keys that edit, then those that stand for a command."""
    keys = KeyBindings()
    editing = ~is_searching  # what is typed after Ctrl-R is not the message

    @keys.add("enter", eager=True, filter=editing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("c-j", eager=True, filter=editing)
    @keys.add("escape", "enter", eager=True, filter=editing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(folds.fold(event.data))

    @keys.add("c-o", filter=editing & Condition(lambda: bool(get_app().current_buffer.text)))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.document = Document(folds.expand(event.current_buffer.text))

    @keys.add("backspace", filter=editing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        mark = folds.mark_before(buffer.document.text_before_cursor)
        buffer.delete_before_cursor(len(mark) or 1)

    _add_commands(keys)
    return keys


def _add_commands(keys: KeyBindings) -> None:
    @keys.add("escape", "escape", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        if not event.current_buffer.text:
            event.current_buffer.text = "/edit"
            event.current_buffer.validate_and_handle()

    @keys.add("c-o", filter=Condition(lambda: not get_app().current_buffer.text), eager=True)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result="/thoughts")

    @keys.add("c-c", eager=True, filter=~is_searching)
    @keys.add("<sigint>", eager=True)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())


def choice_range(number: int) -> str:
    """The keys of numbered choices: ``1-3, ``."""
    return "" if not number else "1, " if number == 1 else f"1-{number}, "


def choosing_keys(number: int) -> KeyBindings:
    """Keys that choose at once; all others do nothing."""
    keys = KeyBindings()

    @keys.add("<any>", eager=True)
    @keys.add("enter", eager=True)
    def _(event: KeyPressEvent) -> None:
        pressed = event.key_sequence[0].data
        if len(pressed) == 1 and pressed in "123456789"[:number]:
            event.current_buffer.text = pressed  # so that it stays on the screen
            event.app.exit(result=pressed)

    @keys.add("escape", eager=True)
    @keys.add("c-c", eager=True)
    @keys.add("c-d", eager=True)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result="0")

    return keys
