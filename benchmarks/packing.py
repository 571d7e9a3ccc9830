"""How full packed rows are, what planning costs, and what message trees save. `python benchmarks/packing.py`; the last line is JSON.

The lengths are like those of LLaVA-1.5's 665,298 conversations: 576 image tokens, text log-normal with median 150 and sigma 0.9, cut at 2,048 tokens; 6 % are
text alone, with median 600.
"""

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, build_language
from vlm.backbones.loading import Load
from vlm.data.stream.collate import collate
from vlm.data.stream.examples import Example, ExampleTree
from vlm.data.stream.mixture import Draws
from vlm.data.stream.order import WINDOW, RowOrder, Units, packed
from vlm.data.stream.packing import efficiency, pack
from vlm.types import IGNORE_INDEX, ChatBatch

SAMPLES = 665_298
IMAGE_TOKENS = 576
LONGEST_TEXT = 2_048
PACK_LENGTHS = (2_640, 4_096, 8_192)  # the first is the longest document; the second is stated in the last line
REPETITIONS = 5


def lengths_like_llava(seed: int = 0) -> np.ndarray:
    """Tokens of each conversation, image tokens included."""
    rng = np.random.default_rng(seed)
    text_only = rng.random(SAMPLES) < 0.06
    text = rng.lognormal(np.log(np.where(text_only, 600, 150)), 0.9).clip(1, LONGEST_TEXT).astype(np.int64)
    return text + np.where(text_only, 0, IMAGE_TOKENS)


def plan(lengths: np.ndarray, capacity: int) -> dict[str, float]:
    """One epoch through the loader's own order, against best-fit decreasing on the whole set."""
    draws = Draws((len(lengths),), (len(lengths),), 7)
    order = RowOrder(Units(len(lengths), lengths=lengths), draws, partial(packed, lengths=lengths, capacity=capacity), capacity=capacity, seed=7)
    start = time.perf_counter()
    rows = [row for window in range(order.num_windows) for row in order.plan(0, window)]
    seconds = time.perf_counter() - start
    ours, whole = efficiency(rows, lengths, capacity), efficiency(pack(lengths, capacity), lengths, capacity)
    slowest = 1 - lengths.sum() / (len(lengths) * int(lengths.max()))  # padding of one conversation a row, to the longest
    return {
        "pack_length": capacity,
        "efficiency": ours,
        "whole_set": whole,
        "relative_efficiency": ours / whole,
        "microseconds_per_sample": seconds / len(lengths) * 1e6,
        "padding_without": slowest,
    }


def conversations(number: int, shared: int, own: int, labelled: int) -> ExampleTree:
    """So many conversations about one picture, of `own` tokens after the picture each, the last `labelled` of which are trained."""
    rng = torch.Generator().manual_seed(number)
    examples = []
    for _ in range(number):
        ids = torch.cat([torch.full((shared,), 3), torch.randint(4, 1000, (own,), generator=rng)])
        labels = ids.clone()
        labels[:-labelled] = IGNORE_INDEX
        examples.append(Example("x", ids, labels, torch.empty(0, 3, 1, 1, dtype=torch.uint8)))
    return ExampleTree(tuple(examples), shared)


def saving(number: int, own: int, labelled: int) -> dict[str, float]:
    """Tokens and time of a training step with a tree, against the same conversations in rows of their own."""
    tree = conversations(number, IMAGE_TOKENS, own, labelled)
    together = collate([[tree]], pad_id=0)
    apart = collate([[ExampleTree((example,))] for example in tree.examples], pad_id=0)
    model = small_llama()
    seconds = {name: [] for name in ("together", "apart")}
    losses = {}
    for _ in range(REPETITIONS):  # interleaved, so that a busy machine slows both
        for name, batch in (("together", together), ("apart", apart)):
            start = time.perf_counter()
            losses[name] = step(model, batch)
            seconds[name].append(time.perf_counter() - start)
    assert abs(losses["together"] - losses["apart"]) < 1e-5, losses
    return {
        "conversations": number,
        "tokens_saving": apart.ids.numel() / together.ids.numel(),
        "time_saving": float(np.median(seconds["apart"]) / np.median(seconds["together"])),
        "loss_difference": abs(losses["together"] - losses["apart"]),
    }


def small_llama() -> HFCausalLM:
    """A Llama of four layers of width 256, with random weights, behind the product's own wrapper."""
    spec = LANGUAGE["tiny-llama"]
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
    torch.manual_seed(0)
    return build_language(replace(spec, architecture={**spec.architecture, **sizes, "vocab_size": 1_000}, width=256), Load(None))


def step(model: HFCausalLM, batch: ChatBatch) -> float:
    """Forward and backward pass; the mean loss."""
    model.zero_grad()
    places, before = batch.targets
    hidden: Tensor = model(model.embed(batch.ids), batch.documents)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden.flatten(0, 1)[before]), batch.labels.flatten()[places])
    loss.backward()
    return loss.item()


def main() -> None:
    """Measure and print."""
    lengths = lengths_like_llava()
    plans = [plan(lengths, capacity) for capacity in PACK_LENGTHS]
    print(f"{SAMPLES:,} conversations, mean {lengths.mean():.0f} tokens; windows of {WINDOW:,}")
    print("pack length   slots filled   best fit of the whole set   relative   planning a sample")
    for row in plans:
        print(
            f"{row['pack_length']:11,}   {row['efficiency']:12.2%}   {row['whole_set']:25.2%}   {row['relative_efficiency']:8.4f}   "
            f"{row['microseconds_per_sample']:.2f} microseconds"
        )
    print(f"(one conversation a row, padded to the longest: {plans[0]['padding_without']:.0%} of the slots are padding)")
    captions, questions = saving(5, own=16, labelled=12), saving(8, own=24, labelled=4)
    for name, row in (("5 captions of 12 tokens", captions), ("8 questions of 24 tokens, answers of 4", questions)):
        print(
            f"message tree, {IMAGE_TOKENS} image tokens, {name}: {row['tokens_saving']:.2f}x fewer tokens, {row['time_saving']:.2f}x faster here "
            f"(4 layers of width 256, fp32); loss differs by {row['loss_difference']:.1e}"
        )
    stated = next(row for row in plans if row["pack_length"] == 4_096)
    print(
        json.dumps(
            {
                "relative_efficiency": stated["relative_efficiency"],
                "efficiency": stated["efficiency"],
                "microseconds_per_sample": stated["microseconds_per_sample"],
                "captions_tokens_saving": captions["tokens_saving"],
                "captions_time_saving": captions["time_saving"],
                "questions_tokens_saving": questions["tokens_saving"],
                "questions_time_saving": questions["time_saving"],
            }
        )
    )


if __name__ == "__main__":
    main()
