import pytest
import torch
from color_embedder import color_embedder

from vlm.errors import ConfigError
from vlm.evaluate.embedder import NamedEmbedder, encode_texts


def test_equal_texts_are_encoded_once_and_rows_are_in_the_order_of_the_texts():
    asked = []
    model = NamedEmbedder("m", len, lambda texts: asked.append(list(texts)) or color_embedder().encode_texts(texts))
    features = encode_texts(model, ["a blue thing", "red", "a blue thing", "green"], batch_size=2)
    assert asked == [["red", "green"], ["a blue thing"]]
    assert features.argmax(1).tolist() == [2, 0, 2, 1]
    assert torch.allclose(features.norm(dim=1), torch.ones(4))


def test_another_number_of_vectors_than_texts_is_an_error():
    with pytest.raises(ConfigError, match=r"'m' gave a tensor of shape \[1, 3\] for 2 inputs; expected one vector each"):
        encode_texts(NamedEmbedder("m", len, lambda texts: torch.ones(1, 3)), ["a", "b"])
