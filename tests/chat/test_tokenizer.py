"""The tokenizer: golden vectors, and streams that equal one-shot decoding."""

import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniechat.chat.tags import Tag
from erniechat.chat.tokenizer import Tokenizer
from erniechat.errors import CheckpointError
from erniechat.mini import checkpoint_folder

PROPERTY = settings(max_examples=80, deadline=None, database=None)

# From transformers, tests/models/ernie4_5/test_tokenization_ernie4_5.py, and the model cards.
PT_VECTORS = [
    ("This is a test", "1720 357 274 1167"),
    ("A sample test", "93957 3983 1167"),
    (" Hello", "30802"),
    ("hello", "18830"),
    (" ", "93919"),
    ("  ", "269"),
    ("<s> Hello<s>how", "1 30802 1 7413"),
    (" <s> Hello<s> how", "93919 1 30802 1 1299"),
    (
        "The following string should be properly encoded: Hello.",
        "700 1997 1530 1189 390 10962 20622 93963 30802 93937",
    ),
    ("But ird and ปี   ird   ด", "2398 93919 2080 326 93919 81175 1111 2080 1111 95676"),
    (
        "Hey<eos>. \t\t \n\nyou  é  @#😈  🤗!       , 1234 15 5,61",
        "25027 93953 92335 6140 93919 22 22 93919 23 23 5557 269 94039 269 94027 93993 253 172 165"
        " 149 269 253 172 177 164 94018 426 1089 93919 4 5 6 7 93919 4 8 93919 8 93938 9 4",
    ),
    (
        "<|begin_of_sentence|>User: Hey, are you conscious? Can you talk to me?\nAssistant: ",
        "100273 2969 93963 30845 93938 524 536 25804 94009 3939 536 4474 318 626 94009 23 92267"
        " 93963 93919",
    ),
]
THINKING_VECTORS = [
    ("This is a test", "1063 357 274 1167"),
    ("hello", "23013"),
    (" ", "269"),
    (
        "abc\n</think>\n\n<response>\ndef\n</response>\n<|im_end|>",
        "49524 23 100282 93919 23 23 100299 93919 23 565 23 100300 93919 23 100308",
    ),
    (
        "<|im_start|>system\n<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n"
        "<|im_start|>user\nHow 's the weather in Beijing today?<|im_end|>\n\n"
        "<|im_start|>assistant\n<think>\n",
        "100307 1462 23 100303 93919 23 18387 93944 3069 93950 2701 23 100304 100308 93919 23 23"
        " 100307 2147 23 3178 468 93927 290 18323 307 31875 5919 94009 100308 93919 23 23 100307"
        " 27963 23 100281 93919 23",
    ),
]


def stream(tokenizer, ids):
    decoder = tokenizer.stream_decoder()
    pieces = [piece for id in ids for piece in decoder.feed(id)]
    return pieces + decoder.flush()


@pytest.mark.parametrize(("text", "ids"), PT_VECTORS)
def test_pt_golden_vectors(pt_tokenizer, text, ids):
    assert pt_tokenizer.encode(text) == [int(id) for id in ids.split()]


@pytest.mark.parametrize(("text", "ids"), THINKING_VECTORS)
def test_thinking_golden_vectors(thinking_tokenizer, text, ids):
    assert thinking_tokenizer.encode(text) == [int(id) for id in ids.split()]


def test_pt_decodes_right_to_left_text(pt_tokenizer):
    assert pt_tokenizer.decode([94014, 663]) == "ا ."
    assert "".join(stream(pt_tokenizer, [94014, 663])) == "ا ."


def test_real_tokenizers_are_counted_and_their_tags_known(pt_tokenizer, thinking_tokenizer):
    assert pt_tokenizer.num_tokens == 101304
    assert thinking_tokenizer.num_tokens == 100309
    assert pt_tokenizer.tag_ids == {}
    assert dict(thinking_tokenizer.tag_ids) == {
        100281: "<think>",
        100282: "</think>",
        100295: "<tool_output>",
        100296: "</tool_output>",
        100297: "<tool_call>",
        100298: "</tool_call>",
        100299: "<response>",
        100300: "</response>",
    }
    assert thinking_tokenizer.special_ids == {0, 1, 2, 100272, 100273, 100274}
    assert thinking_tokenizer.token_id("<|im_end|>") == 100308
    assert thinking_tokenizer.token_id("no such token") is None


def test_mini_tokenizer_has_the_tags_as_tokens(mini_tokenizer):
    assert mini_tokenizer.num_tokens == 4088
    assert mini_tokenizer.tag_ids[4072] == "<think>"
    ids = mini_tokenizer.encode(
        "12 + 30\n</think>\n<response>\n42 你好 🤗\n</response>\n<|im_end|>"
    )
    assert ids[-1] == 4087
    assert "".join(stream(mini_tokenizer, ids)) == (
        "12 + 30\n</think>\n<response>\n42 你好 🤗\n</response>\n"
    )


def test_pt_tokenizer_is_round_trip(pt_tokenizer):
    text = "def f(x):\n\treturn x ** 2  # 你好 🤗 1234\n"
    assert pt_tokenizer.decode(pt_tokenizer.encode(text)) == text


def test_encode_adds_nothing(thinking_tokenizer, tiny_tagged):
    assert thinking_tokenizer.encode("") == []
    assert tiny_tagged.encode("") == []


def test_half_a_surrogate_pair_is_read_as_replacement_character(tiny_plain):
    assert tiny_plain.encode("a\ud83d") == tiny_plain.encode("a\ufffd")
    assert tiny_plain.decode(tiny_plain.encode("\ud83e\udd17")) == "🤗"


def test_tags_are_pieces_of_their_own_and_equal_their_text(tiny_tagged):
    pieces = stream(tiny_tagged, tiny_tagged.encode("hello<think>a</think>"))
    assert pieces == ["hello", "<think>", " ", "a", "</think>"]
    assert [isinstance(piece, Tag) for piece in pieces] == [False, True, False, False, True]


def test_without_tag_tokens_a_tag_is_ordinary_text(tiny_plain):
    pieces = stream(tiny_plain, tiny_plain.encode("<think>"))
    assert "".join(pieces) == "<think>"
    assert not any(isinstance(piece, Tag) for piece in pieces)


def test_special_tokens_turn_marks_and_padding_are_not_shown(tiny_tagged):
    hidden = ["<s>", "</s>", "<|end_of_sentence|>", "<|im_start|>", "<|im_end|>"]
    ids = [tiny_tagged.token_id(text) for text in hidden]
    ids += [tiny_tagged.num_tokens, tiny_tagged.num_tokens + 1000]
    assert tiny_tagged.decode(ids) == ""
    assert stream(tiny_tagged, ids) == []


def test_tags_flagged_special_are_tags_all_the_same(fresh_backend):
    fresh_backend.add_special_tokens(["<think>"])
    tokenizer = Tokenizer(fresh_backend)
    ids = tokenizer.encode("a<think>")
    assert tokenizer.decode(ids) == "a<think>"
    assert isinstance(stream(tokenizer, ids)[-1], Tag)


def test_one_leading_space_is_stripped_at_the_start_only(tiny_tagged):
    hello = tiny_tagged.token_id("▁hello")
    assert stream(tiny_tagged, [hello, hello]) == ["hello", " hello"]


def test_digits_stay_glued(tiny_plain):
    assert "".join(stream(tiny_plain, tiny_plain.encode("12 345"))) == "12 345"


def test_a_character_in_bytes_waits_until_it_is_whole(tiny_plain):
    decoder = tiny_plain.stream_decoder()
    *bytes_, last = tiny_plain.encode("🤗a")
    assert len(bytes_) == 4
    assert [decoder.feed(id) for id in bytes_] == [[], [], [], []]
    assert decoder.feed(last) == ["🤗a"]
    assert decoder.flush() == []


def test_bytes_at_the_end_come_with_flush(tiny_plain):
    decoder = tiny_plain.stream_decoder()
    for id in tiny_plain.encode("🤗"):
        decoder.feed(id)
    assert decoder.flush() == ["🤗"]
    assert decoder.flush() == []


def test_broken_bytes_become_one_replacement_character_each(tiny_plain):
    ids = tiny_plain.encode("🤗")[:2] + tiny_plain.encode("a")
    assert "".join(stream(tiny_plain, ids)) == "\ufffd\ufffda"
    assert tiny_plain.decode(ids) == "\ufffd\ufffda"


def test_a_special_token_between_bytes_does_not_cut_the_character(tiny_plain):
    ids = tiny_plain.encode("🤗")
    ids.insert(2, tiny_plain.token_id("<s>"))
    assert "".join(stream(tiny_plain, ids)) == tiny_plain.decode(ids) == "🤗"


@given(data=st.data())
@PROPERTY
def test_stream_of_random_ids_equals_one_shot(any_tokenizer, data):
    low_ids = st.integers(0, min(400, any_tokenizer.num_tokens + 3))  # bytes, digits, tags
    all_ids = st.integers(0, any_tokenizer.num_tokens + 3)
    tags = st.sampled_from(sorted(any_tokenizer.tag_ids) or [0])
    ids = data.draw(st.lists(low_ids | all_ids | tags, max_size=40))
    pieces = stream(any_tokenizer, ids)
    assert "".join(pieces) == any_tokenizer.decode(ids)
    assert "" not in pieces


TEXT = st.lists(
    st.text(max_size=6)
    | st.sampled_from(["👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "你好", " ", "\n", "42", "<think>", "</s>"]),
    max_size=12,
).map("".join)


@given(text=TEXT)
@PROPERTY
def test_stream_of_random_text_equals_one_shot(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    assert "".join(stream(any_tokenizer, ids)) == any_tokenizer.decode(ids)


@given(text=st.text(alphabet="abc 你好é🤗\n\t0123", max_size=40))
@PROPERTY
def test_stream_gives_the_text_back_where_nothing_is_prepended(tiny_plain, text):
    assert "".join(stream(tiny_plain, tiny_plain.encode(text))) == text


@pytest.mark.timed
def test_a_long_reply_takes_time_linear_in_its_length(tiny_plain):
    ids = tiny_plain.encode("hello 你好 a\n") * 3000
    decoder = tiny_plain.stream_decoder()
    halves = []
    for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
        start = time.perf_counter()
        for id in half:
            decoder.feed(id)
        halves.append(time.perf_counter() - start)
    # Quadratic work would make the second half three times the first.
    assert halves[1] < 2 * halves[0] + 0.2


def test_missing_tokenizer_is_a_checkpoint_error_with_a_way_out(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; download") as info:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"version": "9"}', "\x00"])
def test_damaged_tokenizer_is_a_checkpoint_error_on_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a tokenizer") as info:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(info.value)


def test_tokenizer_of_a_bigger_model_is_refused(tmp_path, tiny_plain):
    tiny_plain._backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path, tiny_plain.num_tokens).num_tokens > 256
    with pytest.raises(CheckpointError, match=r"defines \d+ tokens, but the model has only 100 "):
        Tokenizer.from_folder(tmp_path, vocab_size=100)


def test_a_folder_whose_name_is_not_utf8_has_a_tokenizer_too(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    shutil.copy(checkpoint_folder() / "tokenizer.json", folder)
    expected = Tokenizer.from_folder(checkpoint_folder())
    assert Tokenizer.from_folder(folder).encode("17 + 25") == expected.encode("17 + 25")
