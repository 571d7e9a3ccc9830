"""Samples a second of a training step, against a plain loop over transformers' LLaVA. `python benchmarks/train_step.py`; the last line is JSON.

About 60 M random weights: a ViT of SigLIP's kind and a language model of Llama's. Lengths are those of `benchmarks/packing.py`, scaled: 64 image tokens instead
of 576, texts times 448 / 2,048, so that the longest conversation has 512 tokens. Half of each text is an answer. Both sides take the same conversations in each
step and start from the same weights, one after the other in one process for time (A B A B), and in a process each for memory.

`--device cuda` measures our step alone with SigLIP-so400m-384 and Phi-2 at random weights: 729 image and 150 text tokens, samples/s and MFU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora
from vlm.backbones.vision import VISION
from vlm.conf.schema import LearningRates, StageConfig
from vlm.connectors import CONNECTORS
from vlm.data.stream.collate import collate, collate_singly
from vlm.data.stream.examples import Example, ExampleTree
from vlm.models import losses
from vlm.models.build import freeze
from vlm.models.vision_language import VisionLanguageModel
from vlm.training.compilation import compile_part
from vlm.training.optim import make_optimizer
from vlm.types import IGNORE_INDEX, ChatBatch, ImagePolicy

IMAGE_TOKENS, LONGEST_TEXT = 64, 448
TEXT_SCALE = LONGEST_TEXT / 2_048
VOCABULARY, IMAGE_SIZE, RATE = 32_000, 128, 1e-4
VISION_SIZE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "patch_size": 16,
    "image_size": IMAGE_SIZE,
    "vision_use_head": False,
}
LANGUAGE_SIZE = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.02,
}
TRAINED = {"align": ("connector",), "finetune": ("connector", "language"), "lora": ("connector", "language")}
FEW = 3  # conversations a step in bf16 where the processor has no instructions for it
PEAK = {"H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s of the data sheets
FLOP_A_SAMPLE = {"align": 10.01e12, "lora": 10.13e12, "finetune": 14.47e12}  # 729 + 150 tokens, causal attention, head on 150; counted by hand


@dataclass(frozen=True)
class Step:
    """A model with its optimizer; a call is a training step and returns the mean loss."""

    loss: Callable[[Any], Tensor]
    optimizer: torch.optim.Optimizer
    autocast: bool
    device: str = "cpu"

    def __call__(self, batch: Any) -> float:
        """Forward, backward, clipping, update."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_([weight for group in self.optimizer.param_groups for weight in group["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def conversations(number: int, image_token_id: int, seed: int) -> list[Example]:
    """Conversations with lengths like LLaVA-665k's, scaled; the second half of each text is labelled."""
    rng = np.random.default_rng(seed)
    text_only = rng.random(number) < 0.06
    text = (rng.lognormal(np.log(np.where(text_only, 600, 150)), 0.9).clip(1, 2_048) * TEXT_SCALE).astype(np.int64).clip(2, LONGEST_TEXT)
    examples = []
    for length, bare in zip(text.tolist(), text_only.tolist(), strict=True):
        words = torch.from_numpy(rng.integers(1_000, VOCABULARY, length))
        ids = words if bare else torch.cat([torch.full((IMAGE_TOKENS,), image_token_id), words])
        labels = ids.clone()
        labels[: len(ids) - length // 2] = IGNORE_INDEX
        pixels = torch.from_numpy(rng.integers(0, 256, (0 if bare else 1, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8))
        examples.append(Example("x", ids, labels, pixels))
    return examples


def packed(examples: Sequence[Example]) -> ChatBatch:
    """The conversations of a step in one row, without padding: what `--stage.pack-length` comes to (benchmarks/packing.py: 99.9 % of all places are used)."""
    return collate([[ExampleTree((example,)) for example in examples]], pad_id=0)


def padded(examples: Sequence[Example]) -> ChatBatch:
    """One conversation a row, padded to the longest."""
    return collate_singly(examples, pad_id=0)


def our_model(vision_spec: Any, language_spec: Any, *, stage: str, half: bool) -> VisionLanguageModel:
    """Our model at random weights; frozen parts in bf16 where the step is bf16-mixed, as `vlm.models.build` has it."""
    torch.manual_seed(0)
    frozen = torch.bfloat16 if half else torch.float32
    vision: Any = vision_spec.build(vision_spec, Load(None))
    adapters = {"language": LoRAOptions(rank=16, alpha=32.0, dropout=0.0, targets=language_spec.lora_targets)} if stage == "lora" else {}
    language = build_language(language_spec, Load(None, torch.float32 if stage == "finetune" else frozen))
    for options in adapters.values():
        add_lora(language.model, options)
    connector = CONNECTORS["mlp2x-gelu"].build(vision.width, language.width)
    policy = ImagePolicy(size=vision.image_size)
    model = VisionLanguageModel(vision.to(frozen), connector, language, tokens_per_tile=vision.num_patches, image_policy=policy)
    model.adapters = adapters
    freeze(model, TRAINED[stage])
    return model.train()


def small_model(stage: str, *, half: bool) -> VisionLanguageModel:
    """The composition of about 60 M weights."""
    vision = replace(VISION["siglip-b16-224"], architecture=VISION_SIZE, width=256, image_size=IMAGE_SIZE, num_patches=IMAGE_TOKENS)
    llama = LANGUAGE["tiny-llama"]
    language = replace(
        llama, build=LANGUAGE["llama-2-7b"].build, architecture={**llama.architecture, **LANGUAGE_SIZE}, width=512, vocab_size=VOCABULARY
    )
    return our_model(vision, language, stage=stage, half=half)


def our_step(model: VisionLanguageModel, stage: str, *, half: bool, device: str = "cpu") -> Step:
    """The step of `vlm.training.loop`."""
    rates = LearningRates(**dict.fromkeys(TRAINED[stage], RATE))
    return Step(
        lambda batch: model(batch).sum / batch.num_labels, make_optimizer(model, StageConfig(name=stage, dataset="x", lr=rates)), half, device
    )


def their_step(image_token_id: int, stage: str, *, half: bool, like: VisionLanguageModel | None) -> Step:
    """transformers' LLaVA in a plain loop: sdpa, fused AdamW, frozen parts without gradients; the weights of `like`."""
    import transformers

    text: dict[str, Any] = {**LANGUAGE["tiny-llama"].architecture, **LANGUAGE_SIZE}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION_SIZE},
        text_config=transformers.AutoConfig.for_model(text.pop("model_type"), **text),
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    llava: Any = transformers.LlavaForConditionalGeneration(config)
    assert llava.config._attn_implementation == "sdpa"  # transformers' default
    if like is not None:
        llava.model.vision_tower.load_state_dict(like.vision.model.state_dict())
        llava.model.multi_modal_projector.linear_1.load_state_dict(like.connector.body[0].state_dict())
        llava.model.multi_modal_projector.linear_2.load_state_dict(like.connector.readout.state_dict())
        llava.model.language_model.load_state_dict(like.language.decoder.state_dict())
        llava.lm_head.load_state_dict(like.language.model.get_output_embeddings().state_dict())
    llava.train()
    llava.model.vision_tower.requires_grad_(False)
    if stage == "align":
        llava.requires_grad_(False)
        llava.model.multi_modal_projector.requires_grad_(True)
    weights = [weight for weight in llava.parameters() if weight.requires_grad]
    return Step(lambda batch: llava(**batch, use_cache=False).loss, torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=True), half)


def for_transformers(examples: Sequence[Example]) -> dict[str, Tensor]:
    """What a processor and a collator with dynamic padding give."""
    batch = padded(examples)
    lengths = torch.tensor([len(example.ids) for example in examples])
    inputs = {"input_ids": batch.ids, "labels": batch.labels, "attention_mask": (torch.arange(batch.ids.shape[1]) < lengths[:, None]).long()}
    return inputs | ({"pixel_values": (batch.pixels / 255 - 0.5) / 0.5} if len(batch.pixels) else {})


def timed(step: Step, batch: Any) -> tuple[float, float, float]:
    """Loss, seconds, and CPU seconds of a step."""
    clock, cpu = time.perf_counter(), time.process_time()
    loss = step(batch)
    return loss, time.perf_counter() - clock, time.process_time() - cpu


def compare(stage: str, *, half: bool, data: Sequence[Sequence[Example]]) -> dict[str, float]:
    """Our step and theirs in turn, on the same conversations."""
    model = small_model(stage, half=half)
    theirs = their_step(model.language.image_token_id, stage, half=half, like=model)
    ours = our_step(model, stage, half=half)
    seconds: list[list[float]] = []
    differences = []
    for i, examples in enumerate(data):
        a, b = timed(theirs, for_transformers(examples)), timed(ours, packed(examples))
        differences.append(abs(a[0] - b[0]))
        if i:  # the first step makes the optimizers' states
            seconds.append([a[1], b[1], a[2], b[2]])
    table = np.array(seconds)
    if not half:
        assert max(differences) < 1e-4, differences
    return {
        "ratio": float(table[:, 0].sum() / table[:, 1].sum()),  # of samples a second, the samples being the same
        "median_ratio": float(np.median(table[:, 0] / table[:, 1])),
        "cpu_ratio": float(table[:, 2].sum() / table[:, 3].sum()),
        "loss_difference": max(differences),
    }


def all_positions(model: VisionLanguageModel, batch: ChatBatch) -> Tensor:
    """The loss as transformers computes it: the head on every position."""
    places, before = batch.targets
    targets = torch.full((batch.ids.numel(),), IGNORE_INDEX)
    targets[before] = batch.labels.flatten()[places]
    logits = model.language.logits(model.hidden(batch).flatten(0, 1)).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)


def whole_tower(model: VisionLanguageModel) -> None:
    """Run every layer of the tower, and take the last but one's output."""
    vision = model.vision
    vision.forward = lambda pixels: vision.model(vision._normalized(pixels), output_hidden_states=True).hidden_states[-2]


def whole_last_layer(model: VisionLanguageModel) -> None:
    """Run the last layer's feed-forward part on every place."""
    language: Any = model.language
    forward = language.forward
    language.forward = lambda embeds, documents, needed: forward(embeds, documents)


def dense_mask(model: VisionLanguageModel) -> None:
    """Attend to packed rows through SDPA with one mask of places times places."""
    language: Any = model.language
    language.model.set_attn_implementation("sdpa")

    def forward(embeds: Tensor, documents: Any, needed: Tensor) -> Tensor:
        number = torch.bucketize(torch.arange(embeds.shape[1]), documents.starts, right=True)
        mask = (number[:, None] == number) & torch.ones(len(number), len(number), dtype=torch.bool).tril()
        out = language.decoder(
            inputs_embeds=embeds, position_ids=documents.positions, attention_mask=mask[None, None], use_cache=False, needed=needed
        )
        return out.last_hidden_state

    language.forward = forward


def compiled(model: VisionLanguageModel) -> None:
    """Compile what `--stage.compile vision language` does."""
    compile_part(model, "vision")
    compile_part(model, "language")


def graph_in_tower(model: VisionLanguageModel) -> None:
    """Keep and compute gradients of the frozen tower's weights, which nobody uses."""
    model.vision.requires_grad_(True)


def slow_optimizer(step: Step) -> Step:
    """The same step with AdamW as a loop over weights."""
    weights = [weight for group in step.optimizer.param_groups for weight in group["params"]]
    return replace(step, optimizer=torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=False, foreach=False))


def switches(stage: str, data: Sequence[Sequence[Example]], *, half: bool) -> Iterator[dict[str, Any]]:
    """What each saving gives: seconds without it, over seconds with it, step by step in turn."""

    def step(change: Callable[[VisionLanguageModel], Any] = lambda model: None) -> Step:
        model = small_model(stage, half=half)
        change(model)
        return our_step(model, stage, half=half)

    everywhere = small_model(stage, half=half)
    all_places = replace(our_step(everywhere, stage, half=half), loss=lambda batch: all_positions(everywhere, batch))
    ours = step()
    grouped = sorted((example for examples in data for example in examples), key=lambda example: -len(example.ids))
    by_length = [grouped[i : i + len(data[0])] for i in range(0, len(grouped), len(data[0]))]
    random_rows, packed_rows, grouped_rows = [padded(e) for e in data], [packed(e) for e in data], [padded(e) for e in by_length]
    pairs: dict[str, tuple[tuple[Step, Sequence[ChatBatch]], tuple[Step, Sequence[ChatBatch]]]] = {
        "head and loss on supervised positions only": ((all_places, packed_rows), (ours, packed_rows)),
        "packing (off: a conversation a row, padded to the longest)": ((ours, random_rows), (ours, packed_rows)),
        "length grouping, without packing": ((ours, random_rows), (ours, grouped_rows)),
        "attention by document (off: one dense mask)": ((step(dense_mask), packed_rows), (ours, packed_rows)),
        "no graph in the frozen tower": ((step(graph_in_tower), packed_rows), (ours, packed_rows)),
        "tower stopped at the feature layer": ((step(whole_tower), packed_rows), (ours, packed_rows)),
        "last layer's MLP where a label needs it": ((step(whole_last_layer), packed_rows), (ours, packed_rows)),
        "torch.compile (not in the ratios above)": ((ours, packed_rows), (step(compiled), packed_rows)),
        "fused optimizer": ((slow_optimizer(step()), packed_rows), (ours, packed_rows)),
        "logits in chunks of 2^22 (not in the ratios above)": ((ours, packed_rows), (replace(ours, loss=chunked(ours.loss)), packed_rows)),
    }
    for name, pair in pairs.items():
        yield {"switch": name, **without_over_with(*pair)}


def without_over_with(off: tuple[Step, Sequence[ChatBatch]], on: tuple[Step, Sequence[ChatBatch]]) -> dict[str, float]:
    """Seconds and CPU seconds of one side over the other's. Each batch is run once before it counts, so that graphs are compiled and states made."""
    for i in range(2):
        off[0](off[1][i]), on[0](on[1][i])
    table = np.array([(*timed(off[0], a)[1:], *timed(on[0], b)[1:]) for a, b in zip(off[1], on[1], strict=True)])
    total = table.sum(0)
    return {"ratio": float(total[0] / total[2]), "cpu_ratio": float(total[1] / total[3])}


def chunked(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The loss with logits in small chunks."""

    def run(batch: Any) -> Tensor:
        limits = losses.WHOLE, losses.CHUNK
        losses.WHOLE = losses.CHUNK = 2**22
        try:
            return loss(batch)
        finally:
            losses.WHOLE, losses.CHUNK = limits

    return run


def peak(side: str, stage: str, *, half: bool, number: int) -> float:
    """Largest resident memory of a process that trains one side for three steps, in MB."""
    arguments = ["--stage", stage, "--memory-of", side, "--batch", str(number), *(["--half"] if half else [])]
    out = subprocess.run([sys.executable, str(Path(__file__)), *arguments], check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def train_alone(side: str, stage: str, *, half: bool, data: Sequence[Sequence[Example]]) -> float:
    """Train one side in this process; its peak memory in MB."""
    if side == "ours":
        step, batches = our_step(small_model(stage, half=half), stage, half=half), packed
    else:
        token = build_language(LANGUAGE["tiny-llama"], Load(None)).image_token_id
        step, batches = their_step(token, stage, half=half, like=None), for_transformers
    for examples in data:
        step(batches(examples))
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # not getrusage, which counts the memory of the parent before exec too
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def on_device(stage: str, device: str, *, batch_size: int, steps: int, tiny: bool) -> dict[str, Any]:
    """Our step alone on a GPU: 729 image and 150 labelled text tokens a sample, whole rows of one sample."""
    vision, language = (VISION["tiny-siglip"], LANGUAGE["tiny-phi"]) if tiny else (VISION["siglip-so400m-384"], LANGUAGE["phi-2"])
    tokens = vision.num_patches
    if not tiny:
        language = replace(language, tokenizer=LANGUAGE["tiny-phi"].tokenizer)  # no hub is needed for random weights
    model = our_model(vision, language, stage=stage, half=True).to(device)
    step = our_step(model, stage, half=True, device=device)
    ids = torch.cat([torch.full((tokens,), model.language.image_token_id), torch.randint(20, 380, (150,))])
    labels = torch.where(torch.arange(len(ids)) < tokens, IGNORE_INDEX, ids)
    pixels = torch.randint(0, 256, (1, 3, vision.image_size, vision.image_size), dtype=torch.uint8)
    batch = padded([Example("x", ids, labels, pixels)] * batch_size).to(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        step(batch)
    wait()
    clock = time.perf_counter()
    for _ in range(steps):
        step(batch)
    wait()
    rate = steps * batch_size / (time.perf_counter() - clock)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    best = next((flops for kind, flops in PEAK.items() if kind in name), None)
    mfu = rate * FLOP_A_SAMPLE[stage] / best if best and not tiny else None
    return {"stage": stage, "device": name, "samples_per_second": rate, "mfu": mfu, "batch": batch_size}


def has_bf16() -> bool:
    """True if this processor multiplies in bf16; torch's products are 10 to 60 times slower than in fp32 where it does not."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def report(stages: Sequence[str], number: int, steps: int, *, half_switches: bool) -> dict[str, Any]:
    """Time and memory of each stage, then the switches of the first."""
    token = build_language(LANGUAGE["tiny-llama"], Load(None)).image_token_id
    data = [conversations(number, token, seed) for seed in range(steps + 1)]
    result: dict[str, Any] = {}
    for stage in stages:
        for half in (False, True):
            few = half and not has_bf16()  # so slow that the first conversations of three steps must do, and of the first stage alone
            if few and stage != stages[0]:
                continue
            size = min(number, FEW) if few else number
            row: dict[str, Any] = compare(stage, half=half, data=[examples[:size] for examples in data[: 3 if few else None]])
            if not few:
                row["memory_ratio"] = peak("ours", stage, half=half, number=number) / peak("theirs", stage, half=half, number=number)
            row |= {"conversations_a_step": size, "bf16_instructions": has_bf16()}
            result[f"{stage}_{'bf16' if half else 'fp32'}"] = row
            print(stage, "bf16" if half else "fp32", row, flush=True)
    head = [result[f"{stages[0]}_{kind}"] for kind in ("fp32", "bf16")]
    rows = []
    for row in switches(stages[0], data[: min(len(data), 6)], half=half_switches):
        rows.append(row)
        print(f"{row['switch']:70} {row['ratio']:.2f} (CPU {row['cpu_ratio']:.2f})", flush=True)
    return {
        "ratio": min(row["ratio"] for row in head),
        "ratio_fp32": head[0]["ratio"],
        "ratio_bf16": head[1]["ratio"],
        "memory_ratio": max(row["memory_ratio"] for row in head if "memory_ratio" in row),
        "loss_difference_fp32": head[0]["loss_difference"],
        "headline": stages[0],
        "comparisons": result,
        "switches": rows,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--stages", nargs="+", default=["finetune", "align"], choices=tuple(TRAINED))
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tiny", action="store_true", help="the GPU rows with tiny parts, to try the script")
    parser.add_argument("--stage", default="finetune")
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help="for the script itself")
    parser.add_argument("--half", action="store_true", help="switches in bf16-mixed instead of fp32")
    arguments = parser.parse_args()
    if arguments.memory_of:
        token = build_language(LANGUAGE["tiny-llama"], Load(None)).image_token_id
        data = [conversations(arguments.batch, token, seed) for seed in range(3)]
        print(train_alone(arguments.memory_of, arguments.stage, half=arguments.half, data=data))
    elif arguments.device == "cuda" or arguments.tiny:
        rows = [on_device(s, arguments.device, batch_size=arguments.batch, steps=arguments.steps, tiny=arguments.tiny) for s in TRAINED]
        print(json.dumps({"gpu": rows}))
    else:
        print(json.dumps(report(arguments.stages, arguments.batch, arguments.steps, half_switches=arguments.half)))


if __name__ == "__main__":
    main()
