from pathlib import Path

import torch

from vlm.data.benchmarks.base import Picture
from vlm.data.benchmarks.captioned import Captioned
from vlm.evaluate.neighbors import of_retrieval
from vlm.evaluate.retrieval import Retrieval, RetrievalResult


def test_queries_find_the_nearest_first_and_say_at_which_place_the_right_one_comes():
    images = torch.eye(7)
    texts = torch.eye(7)[[1, 0, 2, 3, 4, 5, 6]] + 0.1 * torch.eye(7)  # the first two captions are exchanged
    data = Captioned("d", [Picture(str(i), Path(str(i))) for i in range(7)], list("abcdefg"), torch.arange(7))
    found = of_retrieval(Retrieval(data, [RetrievalResult("m", {}, images, texts)], []), 7)
    assert [query.place["m"] for query in found.to_pictures] == [2, 2, 1, 1, 1, 1, 1]
    first = found.to_pictures[0].found["m"]
    assert [(item.item, item.right) for item in first[:2]] == [(1, False), (0, True)] and len(first) == 5
    assert [query.found["m"][0].item for query in found.to_texts] == [1, 0, 2, 3, 4, 5, 6]
