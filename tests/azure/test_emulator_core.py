"""The emulator's own promises: an unknown request fails a test, a wrong token or key is refused, faults happen once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running

from platotk.azure.blobs import BlobFiles
from platotk.azure.client import connect
from platotk.azure.options import AzureOptions

WORKSPACE = "https://management.azure.com/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.MachineLearningServices/workspaces/{workspace}"


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator


def test_what_nobody_knows_is_refused_and_kept(azure: Emulator) -> None:
    assert requests.get("https://example.invalid/x", timeout=10).status_code == 404
    assert azure.unrouted == ["GET example.invalid/x"]
    azure.unrouted.clear()


def test_a_body_that_the_sdk_could_not_have_sent_is_kept(azure: Emulator) -> None:
    """As an unknown request does, it fails the test at the end."""
    token = connect(AzureOptions(**azure.options)).credential.get_token("https://management.azure.com/.default").token
    url = WORKSPACE.format(**azure.options) + "/models/agent/versions/1"
    body = {"properties": {"modelUri": "x", "modelTyp": "custom_model"}}
    requests.put(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=10)
    # What is answered repeats it.
    assert all("modelTyp: not known to ModelVersionProperties" in told for told in azure.invalid)
    assert len(azure.invalid) == 2
    azure.invalid.clear()


def test_without_a_good_token_nothing_is_told(azure: Emulator) -> None:
    url = WORKSPACE.format(**azure.options)
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, headers={"Authorization": "Bearer made-up"}, timeout=10).status_code == 401


def test_a_wrong_secret_gets_no_token(azure: Emulator) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import ClientSecretCredential

    given = azure.environ
    wrong = ClientSecretCredential(given["AZURE_TENANT_ID"], given["AZURE_CLIENT_ID"], "wrong")
    with pytest.raises(ClientAuthenticationError, match="Invalid client secret"):
        wrong.get_token("https://management.azure.com/.default")


def test_a_fault_happens_as_often_as_it_is_told_to(azure: Emulator) -> None:
    azure.faults.add("GET login", status=503, times=1)
    url = "https://login.microsoftonline.com/common/discovery/instance"
    assert [requests.get(url, timeout=10).status_code for _ in range(2)] == [503, 200]


@pytest.mark.parametrize("key", ["the key", "another key", "a signature", "another signature"])
def test_blobs_check_keys_and_signatures(azure: Emulator, key: str) -> None:
    """Azurite does; the host name is that of Azure."""
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import ContainerClient

    name = "azureml-blobstore-plato"
    good = azure.blobs.key if key.endswith("key") else azure.blobs.signature(name)
    if key == "another key":
        good = "QUJD" + good[4:]
    elif key == "another signature":
        good = good.replace("sig=", "sig=QUJD")
    client = ContainerClient("https://platostore.blob.core.windows.net", name, credential=good)
    if key.startswith("another"):
        with pytest.raises(HttpResponseError) as caught:
            client.upload_blob("a/b.txt", b"x")
        assert caught.value.status_code == 403
    else:
        client.upload_blob("a/b.txt", b"abc", overwrite=True)
        assert client.download_blob("a/b.txt", offset=1).readall() == b"bc"
        assert [blob.name for blob in client.list_blobs(name_starts_with="a/")] == ["a/b.txt"]
        client.delete_blob("a/b.txt")


@pytest.mark.parametrize("sign", ["key", "sas"])
def test_runs_go_through_the_datastore_with_a_key_or_a_signature(
    azure: Emulator, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr(azure, "sign", sign)
    files = BlobFiles(connect(AzureOptions(**azure.options)), "workspaceblobstore")
    files.pipe_file("platotk/runs/night/run.json", b"{}")
    files.pipe_file("platotk/runs/night/run.json", b'{"a": 1}')
    assert files.cat_file("platotk/runs/night/run.json", 1) == b'"a": 1}'
    assert files.find("platotk/runs/night") == {"platotk/runs/night/run.json": {"size": 8}}
    files.rm_file("platotk/runs/night/run.json")
    assert not files.exists("platotk/runs/night/run.json")


def test_a_folder_of_its_own_for_each(tmp_path: Path) -> None:
    one, other = Emulator(tmp_path / "1"), Emulator(tmp_path / "2")
    assert one.authority.path.read_bytes() != other.authority.path.read_bytes()
