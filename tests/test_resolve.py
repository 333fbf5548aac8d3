"""Where a model's files are, by its name."""

import pytest

from erniechat.errors import UsageError
from erniechat.mini import checkpoint_folder
from erniechat.options import LoadOptions
from erniechat.resolve import locate


def test_a_revision_is_refused_for_what_is_not_on_the_hub():
    folder = str(checkpoint_folder())
    for model in ("mini", folder):
        assert locate(LoadOptions(model=model)).folder == checkpoint_folder()
        with pytest.raises(UsageError, match=f'is for a model on the hub, got "v2" for {model}'):
            locate(LoadOptions(model=model, revision="v2"))
