"""The table of parameters, against counts made by hand."""

import importlib.util
import json
from dataclasses import replace

import pytest

from vlm.conf.schema import LoRAConfig, LoRATowers
from vlm.models.build import build
from vlm.models.checkpoint import save
from vlm.models.parameters import parameter_rows, parameter_table


def test_rows_count_each_part_with_its_adapter(compose):
    rows = {row["part"]: row for row in parameter_rows(compose(rank=2, vision_rank=3, kind="rslora", trained=("vision", "connector", "language")))}
    # q, k, v, out of 2 used layers of width 16: two matrices of 3 x 16 each
    assert rows["vision"] == {
        "part": "vision",
        "parameters": 12_256 + 768,
        "trained": 4 * 2 * 2 * 3 * 16,
        "types": ["fp32"],
        "adapter": "rslora of rank 3, scale 9.2376, on 8 layers",
    }
    # q (32 to 32) and v (32 to 16) of 2 layers
    assert (rows["language"]["trained"], rows["language"]["adapter"]) == (2 * 2 * (64 + 48), "rslora of rank 2, scale 11.3137, on 4 layers")
    assert (rows["connector"]["parameters"], rows["connector"]["trained"], rows["connector"]["adapter"]) == (1_600, 1_600, "")


def test_types_of_a_frozen_tower_and_its_adapter_are_both_said(compose):
    model = compose(rank=2, trained=("connector", "language"), precision="bf16-mixed")
    assert [row["types"] for row in parameter_rows(model)] == [["bf16"], ["fp32"], ["bf16", "fp32"]]


def test_table_has_a_header_a_line_a_part_and_the_sum(compose):
    lines = [line.split() for line in parameter_table(compose(trained=("connector",)))]
    assert [line[0] for line in lines] == ["part", "vision", "connector", "language", "all"]
    assert lines[1] == ["vision", "12,256", "0", "0.00", "%", "fp32"]
    assert lines[-1] == ["all", "57,024", "1,600", "2.81", "%"]


def test_rows_are_stored_with_the_checkpoint(compose, config, tmp_path):
    model = compose(rank=2, trained=("connector", "language"))
    save(model, config(rank=2), tmp_path / "step")
    assert json.loads((tmp_path / "step" / "model.json").read_text())["parameters"] == parameter_rows(model)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra qlora)")
def test_values_of_quantized_weights_are_counted_not_their_bytes(config):
    lora = LoRATowers(language=LoRAConfig(rank=2, quantize="nf4"))
    model = build(replace(config(), lora=lora), precision="bf16", trained=("connector", "language"))
    row = parameter_rows(model)[-1]
    assert row["parameters"] - row["trained"] == 43_168
    assert row["types"] == ["bf16", "fp32", "nf4"]
