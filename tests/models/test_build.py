import pytest

from vlm.conf.schema import LoRAConfig, LoRATowers, VisionLanguageConfig
from vlm.errors import ConfigError
from vlm.models.build import build, skeleton


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed", "bf16"])
@pytest.mark.parametrize(("trained", "rank"), [(("connector",), 0), (("connector", "language"), 4), (("vision", "connector", "language"), 0)])
def test_a_skeleton_is_the_model_without_values(precision: str, trained: tuple[str, ...], rank: int):
    config = VisionLanguageConfig(vision="tiny-fused", language="tiny-phi3", lora=LoRATowers(language=LoRAConfig(rank=rank)))
    whole, bones = (make(config, precision=precision, trained=trained) for make in (build, skeleton))
    described = [{name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()} for model in (whole, bones)]
    assert described[0] == described[1]
    assert {name: buffer.dtype for name, buffer in whole.named_buffers()} == {name: buffer.dtype for name, buffer in bones.named_buffers()}
    assert bones.device.type == "meta"
    assert bones.tokens_per_tile == whole.tokens_per_tile
    assert bones.altered == whole.altered


def test_a_skeleton_refuses_what_a_build_refuses():
    config = VisionLanguageConfig(vision="tiny-siglip", language="tiny-llama", lora=LoRATowers(language=LoRAConfig(rank=4)))
    for make in (build, skeleton):
        with pytest.raises(ConfigError, match="would never change"):
            make(config, precision="fp32", trained=("connector",))
