import pytest
import torch

from vlm.errors import UnknownNameError
from vlm.training.peak import listed_peak, measured_peak, named_peak, peak_of

TERA = 1e12


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307.4),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla T4", 65),
    ],
)
def test_devices_are_found_by_the_name_that_their_driver_gives(name: str, teraflops: float):
    peak = listed_peak(name)
    assert peak is not None
    assert peak.flops_per_second == pytest.approx(teraflops * TERA)


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce GTX 1080", "NVIDIA GeForce RTX 3090 Ti"]
)
def test_a_variant_that_is_not_listed_is_not_taken_for_another(name: str):
    assert listed_peak(name) is None


def test_a_user_may_name_a_device_in_small_letters():
    assert named_peak("h100-pcie").flops_per_second == 756 * TERA
    with pytest.raises(UnknownNameError, match="H200"):
        named_peak("h220")


def test_a_cpu_is_measured_once_by_a_product_of_matrices():
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert 1e9 < peak.flops_per_second < 1e14
    assert "measured" in peak.origin
    assert measured_peak(torch.device("cpu"), torch.float32) is peak
