"""An agent in one file: the same agent, and none of the tricks that zips are known for."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from tests.agents.served import write_agent

from platotk.agents.agent import Agent
from platotk.agents.archive import MAX_FILES, open_archive, write_archive
from platotk.agents.folders import find_agent
from platotk.agents.manifest import read_manifest
from platotk.errors import AgentError

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
VECTOR = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_agent(tmp_path / "agent", VECTOR)


@pytest.fixture
def archive(folder: Path) -> Path:
    return write_archive(folder)


def rewrite(archive: Path, *extra: tuple[zipfile.ZipInfo | str, bytes], leave_out: tuple[str, ...] = ()) -> Path:
    """The same archive with files more or less."""
    held = open_archive(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in held.items():
            if name not in leave_out:
                file.writestr(name, data)
        for entry, data in extra:
            file.writestr(entry, data)
    return archive


def refused(archive: Path, match: str) -> None:
    before = sorted(os.walk(archive.parent))
    with pytest.raises(AgentError, match=match):
        Agent.load(archive)
    assert sorted(os.walk(archive.parent)) == before  # nothing is ever written


def test_it_is_the_same_agent(folder, archive):
    assert archive == folder.with_name("agent.zip")
    observations = [[0.25, 0.5], [-1.0, 1.0]]
    assert Agent.load(archive).act_batch(observations) == Agent.load(str(folder)).act_batch(observations)
    assert read_manifest(archive) == read_manifest(folder)


def test_it_is_found_by_its_path_and_does_not_stand_in_for_a_folder(archive, tmp_path):
    assert find_agent(archive, runs_dir=tmp_path / "runs") == archive


def test_the_same_folder_gives_the_same_bytes(folder, archive):
    before = archive.read_bytes()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert write_archive(folder).read_bytes() == before


def test_a_changed_folder_is_not_archived(folder):
    (folder / "parity.json").write_text("{}")
    with pytest.raises(AgentError, match="hash"):
        write_archive(folder)
    assert not folder.with_name("agent.zip").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../policy.onnx",
        "a/../../b",
        "/etc/cron.d/x",
        "a/b",
        "a\\b",
        "..\\x",
        "C:x",
        "C:\\x",
        "//host/share",
        "..",
        ".",
        "a\nb",
        "CON:",
        "*",
    ],
)
def test_a_name_that_is_more_than_a_name_is_refused(archive, name):
    refused(rewrite(archive, (name, b"x")), "leads out")


def test_a_name_with_a_hidden_end_is_refused(archive):
    data = rewrite(archive, ("evilA", b"x")).read_bytes()
    archive.write_bytes(data.replace(b"evilA", b"evi\0A"))
    refused(archive, "leads out|cannot be read")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_link_a_folder_and_a_device_are_refused(archive, kind):
    entry = zipfile.ZipInfo("openapi.json")
    entry.external_attr = (kind | 0o777) << 16
    refused(rewrite(archive, (entry, b"/etc/passwd"), leave_out=("openapi.json",)), "no file but a link")


@pytest.mark.parametrize("name", ["policy.onnx", "POLICY.ONNX"])
def test_two_files_of_one_name_are_refused(archive, name):
    refused(rewrite(archive, (name, b"other")), "twice")


def test_a_file_that_the_manifest_does_not_name_is_refused(archive):
    refused(rewrite(archive, ("setup.py", b"print('hello')")), "does not name")


@pytest.mark.parametrize("name", ["manifest.json", "policy.onnx", "openapi.json"])
def test_a_missing_file_is_refused(archive, name):
    refused(rewrite(archive, leave_out=(name,)), "missing|no manifest")


@pytest.mark.parametrize("name", ["manifest.json", "policy.onnx", "parity.json", "openapi.json"])
def test_a_changed_byte_is_refused(archive, name):
    data = bytearray(open_archive(archive)[name])
    data[len(data) // 2] ^= 1
    refused(rewrite(archive, (name, bytes(data)), leave_out=(name,)), "hash|JSON|manifest|schema")


def test_every_changed_byte_of_the_archive_is_harmless(archive, folder):
    """Refused, or without effect (a date, a version): never another agent, another error, or a file on disk."""
    whole, manifest = archive.read_bytes(), read_manifest(folder)
    num_refused = 0
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 0xFF
        archive.write_bytes(data)
        try:
            assert read_manifest(archive) == manifest
        except AgentError:
            num_refused += 1
    assert num_refused > 100
    assert sorted(os.listdir(archive.parent)) == ["agent", "agent.zip"]


@pytest.mark.parametrize("length", [0, 1, 21, 22, 100])
def test_a_torn_archive_is_refused(archive, length):
    archive.write_bytes(archive.read_bytes()[:length])
    refused(archive, "cannot be read as a zip")


def test_a_bomb_is_refused_before_it_is_unpacked(archive):
    refused(rewrite(archive, ("zeros", bytes(64 << 20))), "unpacks from")


def test_a_file_that_is_larger_than_it_says_is_refused(archive):
    data = bytearray(rewrite(archive, ("zeros", bytes(1 << 20))).read_bytes())
    for magic, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # the unpacked size, in both headers
        where = data.rindex(magic)
        data[where + at : where + at + 4] = struct.pack("<I", 10)
    archive.write_bytes(data)
    refused(archive, "cannot be read|another size")


def test_too_large_and_too_many_are_refused(archive, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("platotk.agents.archive.MAX_UNPACKED_BYTES", 1000)
        refused(archive, "unpacks from")
    with monkeypatch.context() as patch:
        patch.setattr("platotk.agents.manifest.MAX_FILE_BYTES", 100)
        refused(archive, "larger than")
    refused(rewrite(archive, *((f"file{number}", b"") for number in range(MAX_FILES))), "at most 64")


def test_an_encrypted_file_is_refused(archive):
    data = bytearray(archive.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(magic) + at] |= 1
    archive.write_bytes(data)
    refused(archive, "encrypted")


def test_an_unusual_packing_is_refused(archive):
    held = open_archive(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as file:
        for name, data in held.items():
            file.writestr(name, data)
    refused(archive, "export does not use")


def test_an_archive_inside_a_folder_of_its_own_is_refused(folder):
    shutil.make_archive(str(folder.parent / "packed"), "zip", folder.parent, "agent")
    refused(folder.parent / "packed.zip", "leads out")


def test_an_unknown_schema_is_refused(archive):
    manifest = json.loads(open_archive(archive)["manifest.json"])
    text = json.dumps({**manifest, "schema": 99}).encode()
    refused(rewrite(archive, ("manifest.json", text), leave_out=("manifest.json",)), "schema 99")


def test_a_model_with_external_data_is_refused(folder):
    import onnx

    from platotk.agents.manifest import write_manifest

    model = onnx.load(folder / "policy.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "secrets.bin"
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    content = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {key: content[key] for key in ("adapter", "model", "parity")})
    refused(write_archive(folder), "in another file")
