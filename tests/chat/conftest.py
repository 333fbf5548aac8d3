"""Fixtures of the chat tests: real checkpoints' small files where they lie, tiny ones always."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

import erniechat
from erniechat.chat.tags import TAGS
from erniechat.chat.template import ChatTemplate
from erniechat.chat.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[2].parent / "shared"
PT = "ERNIE-4.5-21B-A3B-PT"
THINKING = "ERNIE-4.5-21B-A3B-Thinking"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    if not (SHARED / "hub" / PT / "tokenizer.json").is_file():
        pytest.skip("no real tokenizers and templates beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def pt_folder(shared_folder):
    return shared_folder / "hub" / PT


@pytest.fixture(scope="session")
def thinking_folder(shared_folder):
    return shared_folder / "hub" / THINKING


@pytest.fixture(scope="session")
def mini_folder():
    inside = Path(erniechat.__file__).parent / "mini" / "checkpoint"
    for folder in (inside, SHARED / "mini" / "checkpoint"):
        if (folder / "tokenizer.json").is_file():
            return folder
    pytest.skip("the mini checkpoint is not here yet")


@pytest.fixture(scope="session")
def pt_tokenizer(pt_folder):
    return Tokenizer.from_folder(pt_folder, vocab_size=103424)


@pytest.fixture(scope="session")
def thinking_tokenizer(thinking_folder):
    return Tokenizer.from_folder(thinking_folder, vocab_size=103424)


@pytest.fixture(scope="session")
def mini_tokenizer(mini_folder):
    return Tokenizer.from_folder(mini_folder, vocab_size=4096)


@pytest.fixture(scope="session")
def pt_template():
    return ChatTemplate((FIXTURES / "pt.jinja").read_text(), model="baidu/ERNIE-4.5-21B-A3B-PT")


@pytest.fixture(scope="session")
def thinking_template():
    source = (FIXTURES / "thinking.jinja").read_text()
    return ChatTemplate(source, model="baidu/ERNIE-4.5-21B-A3B-Thinking")


@pytest.fixture(scope="session")
def switchable_template():
    return ChatTemplate((FIXTURES / "switchable.jinja").read_text(), model="switchable")


def tiny_backend(*, prefix_space: bool, tags: bool) -> tokenizers.Tokenizer:
    """A BPE tokenizer built like ERNIE's: byte fallback, ▁ for space, digits as added tokens."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    digits = list("0123456789")
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "▁")]
    texts = ["<unk>", "<s>", "</s>", *digits, *bytes_, "▁", *"abcdefghlorw<>/", "你", "好"]
    texts += ["".join(pair) for pair in merges]
    vocab = {text: idx for idx, text in enumerate(texts)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    steps = [normalizers.Prepend("▁"), replace] if prefix_space else [replace]
    backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = ["<unk>", "<s>", "</s>", "<|end_of_sentence|>", "<|begin_of_sentence|>"]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    plain = digits + ([*sorted(TAGS), "<|im_start|>", "<|im_end|>"] if tags else [])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain])
    return backend


@pytest.fixture
def fresh_backend():
    return tiny_backend(prefix_space=False, tags=False)


@pytest.fixture(scope="session")
def tiny_plain():
    return Tokenizer(tiny_backend(prefix_space=False, tags=False))


@pytest.fixture(scope="session")
def tiny_tagged():
    return Tokenizer(tiny_backend(prefix_space=True, tags=True))


@pytest.fixture(
    params=["tiny_plain", "tiny_tagged", "pt_tokenizer", "thinking_tokenizer", "mini_tokenizer"],
    scope="session",
)
def any_tokenizer(request):
    return request.getfixturevalue(request.param)
