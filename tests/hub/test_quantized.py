"""What bitsandbytes has quantized, from the hub: planned by its headers, used as it is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from erniechat.cache import copies_folder
from erniechat.cli import main
from erniechat.errors import CheckpointError
from erniechat.export import export
from erniechat.loader import load_engine
from erniechat.model.checkpoint import Checkpoint, StoredQuantized
from erniechat.options import LoadOptions
from quant.copy import QuantizedCopy
from quant.copy_names import DATA_FILE
from quant.formats.codebook import unpack_x16
from quant.tensor import QuantTensor
from tests.hub.loopback import Hub, client_of

NAME = "owner/mini-bnb-4bit"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as bitsandbytes has it in 4 bits; a weight's parts are in two shards."""
    exported = tmp_path_factory.mktemp("exported") / "one"
    export(LoadOptions(quant="nf4", copy=False), str(exported), lambda done, total: None)
    (file,) = exported.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.safetensors"
        names = sorted(tensors)[number - 1 :: 2]
        save_file({name: tensors[name] for name in names}, exported / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    return exported


@pytest.fixture
def hub(checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({NAME: checkpoint}) as server, client_of(server, home, monkeypatch):
        yield server


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def sent(hub: Hub) -> int:
    return sum(nbytes for name, nbytes in hub.sent.items() if name.endswith(".safetensors"))


def test_the_plan_knows_format_and_sizes_before_a_weight_is_fetched(
    hub: Hub, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nbytes = sum(path.stat().st_size for path in shards_of(checkpoint))
    assert main(["plan", NAME, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["quant"], facts["download_nbytes"], facts["fits"]) == ("nf4", nbytes, True)
    assert main(["plan", NAME]) == 0
    page = capsys.readouterr().out
    assert page.startswith(
        f"{NAME} · 0123456789ab · nf4 · cpu\nplan   download {nbytes / 1e6:.1f} MB (2 of 2 f"
    )
    assert "take nf4 as it is, keep" in page
    assert sent(hub) <= 2 * (128 << 10) + 4096  # the beginnings, with the headers
    load_engine(LoadOptions(model=NAME))
    (folder,) = copies_folder().iterdir()
    assert facts["keep_nbytes"] == pytest.approx((folder / DATA_FILE).stat().st_size, rel=0.01)


def test_it_is_refused_before_the_first_byte_where_it_does_not_fit(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("erniechat.start_plan.shutil.disk_usage", lambda path: Usage)
    assert main(["-m", NAME, "-p", "x", "--no-stdin"]) == 4
    assert "does not fit on the disk of" in capsys.readouterr().err
    assert sent(hub) <= 2 * (128 << 10) + 4096


def test_its_codes_and_scales_are_used_as_they_are(hub: Hub, checkpoint: Path) -> None:
    load_engine(LoadOptions(model=NAME))
    (folder,) = copies_folder().iterdir()
    found = QuantizedCopy(folder)["layers.0.qkv"]
    stored = next(t for t in Checkpoint(checkpoint) if t.name == Q)
    assert isinstance(stored, StoredQuantized)
    assert isinstance(found, QuantTensor)
    packed = stored.codes.read().flatten()  # two codes a byte, the first in the high half
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(stored.shape)
    assert found.format == "nf4"
    assert torch.equal(unpack_x16(found.parts["codes"])[: len(codes)].to(torch.uint8), codes)


def test_discarded_originals_are_not_fetched_again(hub: Hub, home: Path) -> None:
    load_engine(LoadOptions(model=NAME, discard_originals=True))
    assert not list(home.glob("hub/models--*/snapshots/*/*.safetensors"))
    hub.log.clear()
    load_engine(LoadOptions(model=NAME))
    assert not hub.requests(".safetensors")


def test_a_shape_that_config_json_does_not_say_is_found_when_it_arrives(
    checkpoint: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lying"
    folder.mkdir()
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        if path.suffix == ".safetensors":  # as many weights, another shape
            data = data.replace(b'"shape": [256, 256]', b'"shape": [128, 512]')
        (folder / path.name).write_bytes(data)
    with (
        Hub({NAME: folder}) as server,
        client_of(server, home, monkeypatch),
        pytest.raises(
            CheckpointError, match=r"_proj.weight has shape 128 × 512, config.json says 256 "
        ),
    ):
        load_engine(LoadOptions(model=NAME))
