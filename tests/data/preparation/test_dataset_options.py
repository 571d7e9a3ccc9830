from dataclasses import dataclass

import pytest

from vlm.data.datasets.base import NoOptions
from vlm.data.preparation.dataset_options import options_from
from vlm.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Options:
    seed: int = 7
    request: str = "Describe the image."
    all: bool = True
    share: float = 0.5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; at least 0.")


def test_values_have_the_types_of_the_options():
    pairs = ["seed=3", "request=12 = a dozen?", "all=false", "share=1", 'names=["a", "b"]']
    assert options_from(pairs, Options(), dataset="shapes") == Options(3, "12 = a dozen?", False, 1.0, ("a", "b"))
    assert options_from([], Options(seed=5), dataset="shapes") == Options(seed=5)


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"--option of shapes named 'sed'. Did you mean 'seed'.*Known: all, names, request, seed, share"):
        options_from(["sed=3"], Options(), dataset="shapes")


@pytest.mark.parametrize("pair", ["seed", "seed=many", "seed=-1", "all=no", "share=half"])
def test_value_that_does_not_fit_is_named(pair: str):
    with pytest.raises(ConfigError, match=f"--option of shapes.*{pair.partition('=')[0]}"):
        options_from([pair], Options(), dataset="shapes")


def test_dataset_without_options_says_so():
    with pytest.raises(ConfigError, match=r"shapes has no options; leave out --option seed=3"):
        options_from(["seed=3"], NoOptions(), dataset="shapes")
