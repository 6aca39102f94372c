"""The containers have no more rights than they need, and no password in their environment."""

from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY


@pytest.mark.parametrize("file", ["compose.yaml", "compose.vllm.yaml"])
def test_our_containers_have_few_rights_and_the_password_as_a_file(file: str) -> None:
    read: dict[str, Any] = yaml.safe_load((REPOSITORY / file).read_text())
    ours = [each for name, each in read["services"].items() if name.startswith("nightschool")]
    assert ours
    for service in ours:
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert [each for each in service["tmpfs"] if each.startswith("/tmp")]
        assert service["secrets"] == ["owner_password"]
        assert service["environment"]["NIGHTSCHOOL_OWNER_PASSWORD_FILE"] == "/run/secrets/owner_password"
        assert "NIGHTSCHOOL_OWNER_PASSWORD" not in service["environment"]
        assert "data:/data" in service["volumes"]
    assert read["secrets"]["owner_password"]["file"].startswith("${NIGHTSCHOOL_OWNER_PASSWORD_FILE:?")


def test_the_volume_is_made_for_one_account_alone() -> None:
    assert "--mode=0700 --owner=nightschool" in (REPOSITORY / "Dockerfile").read_text()
