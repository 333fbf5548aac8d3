"""Where a model's files are, by its name."""

import pytest

from erniechat.errors import ModelNotFoundError, UsageError
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions
from erniechat.resolve import locate


def test_a_revision_is_refused_for_what_is_not_on_the_hub():
    folder = str(checkpoint_folder())
    for model in ("mini", folder):
        assert locate(LoadOptions(model=model)).folder == checkpoint_folder()
        with pytest.raises(UsageError, match=f'is for a model on the hub, got "v2" for {model}'):
            locate(LoadOptions(model=model, revision="v2"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x" * 5000, r'"x+" cannot be looked at \(File name too long\); name a folder'),
        ("~no-such-user/model", 'there is no folder "~no-such-user/model"'),
        ("~no-such-user", 'there is no folder "~no-such-user"'),
    ],
)
def test_names_that_no_path_can_have_are_one_line(name, text):
    with pytest.raises(ModelNotFoundError, match=text):
        locate(LoadOptions(model=name))


def test_a_suffix_may_be_in_capitals(tmp_path):
    path = tmp_path / "MODEL.GGUF"
    path.write_bytes(b"GGUF")
    assert locate(LoadOptions(model=str(path))).is_gguf
