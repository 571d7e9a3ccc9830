import pytest

from vlm.data.hosts import host_names
from vlm.errors import ConfigError


def test_names_are_compared_in_small_letters_and_without_brackets():
    assert host_names(["A.Example.ORG", "[FD00::1]", "*"], "--allow-host") == {"a.example.org", "fd00::1", "*"}


@pytest.mark.parametrize("name", ["https://a.org", "a.org:80", "a.org/", "*.a.org", "", "a b"])
def test_what_is_no_name_is_refused_when_it_is_stated(name):
    with pytest.raises(ConfigError, match=r"--trusted-host is .*, which is no host's name"):
        host_names(["ok.org", name], "--trusted-host")
