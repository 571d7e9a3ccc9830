"""What a model computes and keeps for the backward pass, call by call, from one forward pass on the meta device. Knows no family and no rule of thumb.

A mode of torch sees every matrix product, convolution and attention call with its shapes, and whether its inputs and weights take part in the
gradient: so frozen parts, adapters, grouped keys and gated layers are seen rather than assumed. Attention is not run but replaced by a function that
keeps what a flash kernel keeps (Dao 2023, arXiv:2307.08691): queries, keys, values, output and one number a query; so no T x T matrix is counted.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vlm.backbones.language import attention
from vlm.models.losses import cross_entropy
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import Documents

LINEAR = (F.linear, torch.matmul, torch.bmm, torch.mm, torch.addmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm)
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
COMPOSITE = (torch.einsum, torch.tensordot, torch.baddbmm, F.bilinear, F.multi_head_attention_forward)  # products inside, seen by torch's own counter
IN_FP32 = (F.layer_norm, F.group_norm)  # of CUDA's autocast; the rest of its list is not in a tower, or is fp32 already


@dataclass(frozen=True)
class Call:
    """One matrix product, convolution or attention call of the forward pass.

    Attributes:
        part: vision, connector, language or head.
        forward: FLOPs of the forward pass, two for a multiplication and an addition; of attention without a causal half.
        input_gradient: FLOPs of the gradient of its inputs, in the backward pass; of attention of queries, keys and values.
        weight_gradient: FLOPs of the gradient of its weight.
        is_attention: True for attention.
        window: Of attention: tokens that a query sees at most, or None.
        at_labels: True if it is computed at the places alone that predict a label.
        is_recomputed: True if gradient checkpointing of its block computes it a second time.
    """

    part: str
    forward: int
    input_gradient: int
    weight_gradient: int
    is_attention: bool = False
    window: int | None = None
    at_labels: bool = False
    is_recomputed: bool = False


@dataclass(frozen=True)
class Kept:
    """Bytes that stay for the backward pass, weights not counted.

    Attributes:
        outside: Of what lies outside of the blocks: embeddings, connector, head and loss.
        blocks: Of each block of each part, in order.
        inputs: Of the input of each block, which is all that gradient checkpointing keeps of it.
        copies: Of the bf16 copies of fp32 weights in each part's blocks, which autocast holds until the forward pass ends.
    """

    outside: int
    blocks: dict[str, tuple[int, ...]]
    inputs: dict[str, tuple[int, ...]]
    copies: dict[str, int]

    def total(self, *, recomputed: Sequence[str] = ()) -> int:
        """Bytes at the peak: where the forward pass ends, or where the backward pass has computed the largest block again.

        Args:
            recomputed: Parts with gradient checkpointing (Chen et al. 2016, arXiv:1604.06174).
        """
        whole = sum(sum(sizes) for part, sizes in self.blocks.items() if part not in recomputed)
        inputs = sum(sum(self.inputs[part]) for part in recomputed if part in self.inputs)
        largest = max((size for part in recomputed for size in self.blocks.get(part, ())), default=0)
        return self.outside + whole + inputs + max(largest, sum(self.copies.get(part, 0) for part in recomputed))


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed, and what it keeps."""

    calls: tuple[Call, ...]
    kept: Kept


@dataclass(frozen=True)
class Shape:
    """What a traced batch holds: rows of one document, the tokens of the pictures first.

    Attributes:
        rows: Rows.
        tiles: Tiles a row.
        text: Tokens of text a row.
        labels: Labelled tokens a row.
    """

    rows: int
    tiles: int
    text: int
    labels: int


def trace(model: VisionLanguageModel, shape: Shape, *, autocast: bool = False) -> Trace:
    """Run the forward pass of a training step and write down what it computes and keeps; nothing is computed in fact.

    Args:
        model: A model on the meta device (`vlm.models.build.skeleton`), its frozen parts frozen.
        shape: The batch.
        autocast: True for the shapes' types under bf16 autocast on CUDA.
    """
    if model.device.type != "meta":
        raise ValueError(f"A trace needs a model on the meta device, this one is on {model.device}; see vlm.models.build.skeleton.")
    model.train()
    watch = _Watch(_storages(model), autocast=autocast)
    with _followed(model, watch), watch, saved_tensors_hooks(watch.keep, lambda tensor: tensor):
        loss = _loss(model, shape)
    assert loss.is_meta
    return Trace(tuple(watch.finished_calls()), watch.kept())


def _storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}


def _loss(model: VisionLanguageModel, shape: Shape) -> Tensor:
    """The forward pass of `VisionLanguageModel`, with image and text embeddings put one after the other instead of spliced by the ids."""
    size = model.image_policy.size
    embeds = model.language.embed(torch.zeros(shape.rows, shape.text, dtype=torch.int64, device="meta"))  # [B, text, E]
    if shape.tiles:
        pixels = torch.empty(shape.rows * shape.tiles, 3, size, size, dtype=torch.uint8, device="meta")
        images = model.encode_images(pixels).reshape(shape.rows, -1, embeds.shape[-1])
        embeds = torch.cat([images.to(embeds.dtype), embeds], dim=1)
    labels = shape.rows * shape.labels
    needed = torch.arange(labels, device="meta")
    hidden = model.language(embeds, Documents.one_per_row(*embeds.shape[:2], device="meta"), needed=needed)
    logits = model.language.logits(hidden.flatten(0, 1)[needed])
    return cross_entropy(logits, torch.zeros(labels, dtype=torch.int64, device="meta")).sum


@contextmanager
def _followed(model: VisionLanguageModel, watch: "_Watch") -> Iterator[None]:
    """Tell the watch, by hooks, which part and which block is running, and how far back its attention sees."""
    from transformers import AttentionInterface

    def document_attention(*tensors: Any, sliding_window: int | None = None, **settings: Any) -> Any:
        watch.window = sliding_window
        return attention.document_attention(*tensors, sliding_window=sliding_window, **settings)

    parts = {
        "vision": model.vision,
        "connector": model.connector,
        "language": model.language.decoder,
        "head": model.language.model.get_output_embeddings(),
    }
    with ExitStack() as hooks:
        hooks.callback(attention.register)  # the function itself, again
        AttentionInterface.register(attention.NAME, document_attention)
        for part, module in parts.items():
            hooks.callback(module.register_forward_pre_hook(lambda *_, part=part: watch.enter_part(part)).remove)
        last_layer: Any = model.language.blocks()[-1]
        for of_labels in (last_layer.mlp, parts["head"]):
            hooks.callback(of_labels.register_forward_pre_hook(lambda *_: watch.at_labels(True)).remove)
            hooks.callback(of_labels.register_forward_hook(lambda *_: watch.at_labels(False)).remove)
        for tower in (model.vision, model.language):
            for block in tower.blocks():
                hooks.callback(block.register_forward_pre_hook(lambda _, inputs: watch.enter_block(inputs)).remove)
                hooks.callback(block.register_forward_hook(lambda *_: watch.leave_block()).remove)
        yield


class _Flash(torch.autograd.Function):
    """An attention function that computes nothing, and keeps what a flash kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens = query.shape[:-1]
        out = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)  # as it lies in the kernels' memory
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Watch(TorchFunctionMode):
    """Sees calls and kept tensors; told by hooks where it is."""

    def __init__(self, weights: set[int], *, autocast: bool):
        super().__init__()
        self._weights, self._autocast = weights, autocast
        self._part = "language"
        self._block: tuple[str, int] | None = None
        self.window: int | None = None
        self._calls: list[tuple[Call, tuple[str, int] | None]] = []
        self._at_labels = False
        self._inside = False  # of a call that is being recorded
        self._seen: dict[int, Tensor] = {}  # held, so that no number of a storage is used twice
        self._bytes: dict[tuple[str, int] | None, int] = defaultdict(int)
        self._inputs: dict[tuple[str, int], int] = {}
        self._computed_again: dict[tuple[str, int], int] = {}
        self._copies: dict[str, int] = defaultdict(int)

    def enter_part(self, part: str) -> None:
        self._part = part

    def enter_block(self, inputs: tuple[Any, ...]) -> None:
        block = (self._part, len([key for key in self._inputs if key[0] == self._part]))
        hidden, self._block = inputs[0], block
        self._inputs[block] = hidden.numel() * hidden.element_size()

    def leave_block(self) -> None:
        self._block = None

    def at_labels(self, now: bool) -> None:
        self._at_labels = now

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd keeps, once for all views of it."""
        if self._block is not None:
            # torch stops computing a block again where the last tensor that it kept is found, which is before the call that keeps it
            self._computed_again[self._block] = len(self._calls) - self._inside
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self._bytes[self._block] += storage.nbytes()
        return tensor

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = (self._half(tensor) for tensor in args[:3])
            self._record(_attention(self._part, query, key, value, window=self.window if self._part == "language" else None))
            return self._run(_Flash.apply, (query, key, value), {})
        if func in LINEAR or func in CONVOLUTIONS:
            args, kwargs = [self._half(value) for value in args], {name: self._half(value) for name, value in kwargs.items()}
            self._record((_convolution if func in CONVOLUTIONS else _product)(self._part, func, args, kwargs))
            return self._run(func, args, kwargs)
        if func in COMPOSITE:
            args, kwargs = [self._half(value) for value in args], {name: self._half(value) for name, value in kwargs.items()}
            self._record(_composite(self._part, func, args, kwargs))
            return self._run(func, args, kwargs)
        if self._autocast and func in IN_FP32:
            args = [value.float() if isinstance(value, Tensor) else value for value in args]
            kwargs = {name: value.float() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self._inside = True
        out = func(*args, **kwargs)
        self._inside = False
        return out

    def _half(self, value: Any) -> Any:
        if not (self._autocast and isinstance(value, Tensor) and value.is_floating_point()):
            return value
        half = value.to(torch.bfloat16)
        if half is not value and self._block is not None and value.untyped_storage()._cdata in self._weights:
            self._copies[self._part] += half.nbytes
        return half

    def _record(self, call: Call) -> None:
        self._calls.append((replace(call, at_labels=self._at_labels), self._block))

    def finished_calls(self) -> Iterator[Call]:
        for number, (call, block) in enumerate(self._calls):
            again = block is not None and number < self._computed_again.get(block, 0)
            yield replace(call, is_recomputed=again)

    def kept(self) -> Kept:
        parts = {part for part, _ in self._inputs}
        in_order = {part: sorted(key for key in self._inputs if key[0] == part) for part in parts}
        return Kept(
            outside=self._bytes[None],
            blocks={part: tuple(self._bytes[key] for key in keys) for part, keys in in_order.items()},
            inputs={part: tuple(self._inputs[key] if key in self._computed_again else 0 for key in keys) for part, keys in in_order.items()},
            copies=dict(self._copies),
        )


def _grows(tensor: Any) -> bool:
    return torch.is_grad_enabled() and isinstance(tensor, Tensor) and tensor.requires_grad


def _product(part: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    """A matrix product; of `addmm` the last two arguments, and a linear layer's weight is the second."""
    left, right = (args[1], args[2]) if func is torch.addmm else (args[0], args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("other")))
    assert isinstance(right, Tensor)
    columns = right.shape[0] if func is F.linear else right.shape[-1]
    batch = 1 if func is F.linear or right.ndim < 3 else math.prod(torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
    rows = left.numel() // left.shape[-1] if batch == 1 else batch * left.shape[-2]
    forward = 2 * rows * left.shape[-1] * columns
    return Call(part, forward, input_gradient=forward * _grows(left), weight_gradient=forward * _grows(right))


def _convolution(part: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    """A convolution, counted as a product for each output pixel; padding is counted as if it were picture.

    The gradient of the weights of a grouped one costs as much as its forward pass, too. torch 2.15's counter takes it for a dense one there, so for a
    CNN that is trained it counts more.
    """
    image, weight = args[0], args[1]
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        out = func(*args, **kwargs)
    forward = 2 * out.numel() * weight[0].numel()
    return Call(part, forward, input_gradient=forward * _grows(image), weight_gradient=forward * _grows(weight))


def _composite(part: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    """A function with products inside: one forward pass' worth of FLOPs for the gradient of its inputs, one for that of its weights."""
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        func(*args, **kwargs)
    forward, tensors = counter.get_total_flops(), tree_leaves((args, kwargs))
    weights = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    inputs = [tensor for tensor in tensors if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)]
    return Call(part, forward, input_gradient=forward * any(map(_grows, inputs)), weight_gradient=forward * any(map(_grows, weights)))


def _attention(part: str, query: Tensor, key: Tensor, value: Tensor, *, window: int | None) -> Call:
    """Scores and weighted sum. Backward: the gradient of the weights for queries or keys, then one product for each that takes part.

    That a flash kernel computes the scores once more is its own business and not counted, as in PaLM's MFU (arXiv:2204.02311, appendix B).
    """
    product = 2 * query.numel() // query.shape[-1] * key.shape[-2]  # a row of scores, for one element of width
    scores, sums = product * query.shape[-1], product * value.shape[-1]
    grow_query, grow_key, grow_value = _grows(query), _grows(key), _grows(value)
    backward = sums * grow_value + sums * (grow_query or grow_key) + scores * grow_query + scores * grow_key
    return Call(part, scores + sums, input_gradient=backward, weight_gradient=0, is_attention=True, window=window)
