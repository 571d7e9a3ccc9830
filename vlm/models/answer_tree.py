"""Several answers to one prompt as a tree of tokens: what answers begin with alike is computed once, in one forward pass without a cache.

A row is a prompt and the whole tree behind it; a mask lets a token see the prompt and its own ancestors (tree attention, Miao et al. 2023,
arXiv:2305.09781, section 4). Knows token ids and a language model; neither pictures nor templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm.backbones.language.base import HFCausalLM

ROOT = 0  # the end of the prompt


@dataclass(frozen=True)
class AnswerTree:
    """Beginnings of answers, each once; node 0 is the empty one, and the last token of an answer is predicted, never read.

    Attributes:
        tokens: Token of each node but the first.
        sees: Which nodes are a node's ancestors, or itself; node 0 left out.
        depths: Tokens from the prompt to each node, node 0 left out, from 1.
        paths: For each answer, the node behind which each of its tokens comes.
    """

    tokens: Int[Tensor, " nodes"]
    sees: Bool[Tensor, "nodes nodes"]
    depths: Int[Tensor, " nodes"]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> "AnswerTree":
        """The tree of some answers, as token ids; none of them is empty."""
        nodes: dict[tuple[int, int], int] = {}  # by the node before it and its token
        paths = []
        for answer in answers:
            path = [ROOT]
            for token in answer[:-1]:
                path.append(nodes.setdefault((path[-1], token), len(nodes) + 1))
            paths.append(tuple(path))
        sees = torch.eye(len(nodes), dtype=torch.bool)
        for (before, _), node in nodes.items():  # in the order they were made, so a node's row is whole when those behind it need it
            if before != ROOT:
                sees[node - 1] |= sees[before - 1]
        return cls(
            tokens=torch.tensor([token for _, token in nodes], dtype=torch.long),
            sees=sees,
            depths=sees.sum(1),
            paths=tuple(paths),
        )


def node_states(
    language: HFCausalLM, prompts: Float[Tensor, "B T E"], mask: Int[Tensor, "B T"], tree: AnswerTree
) -> Float[Tensor, "B nodes_and_root E"]:
    """Hidden states at the end of each prompt and at every node behind it.

    Args:
        language: The model.
        prompts: Embeddings, aligned at the end.
        mask: 1 where a prompt has a token.
        tree: The answers.
    """
    tree_embeds = language.embed(tree.tokens.to(prompts.device).unsqueeze(0)).expand(len(prompts), -1, -1)
    lengths = mask.sum(1, keepdim=True)
    positions = torch.cat([(mask.cumsum(1) - 1).clamp_min(0), lengths - 1 + tree.depths.to(mask.device)], dim=1)
    out = language.decoder(
        inputs_embeds=torch.cat([prompts, tree_embeds.to(prompts.dtype)], dim=1),
        position_ids=positions,
        attention_mask=_mask_of_layers(language.model.config, visible(mask, tree), positions),
        use_cache=False,
    )
    return out.last_hidden_state[:, prompts.shape[1] - 1 :]


def visible(mask: Int[Tensor, "B T"], tree: AnswerTree) -> Bool[Tensor, "B S S"]:
    """Who sees whom in rows of a left-padded prompt and the tree; padding sees itself, because nothing would be no number."""
    rows, prompt, nodes = *mask.shape, len(tree.tokens)
    seen = torch.zeros(rows, prompt + nodes, prompt + nodes, dtype=torch.bool, device=mask.device)
    seen[:, :prompt, :prompt] = torch.ones(prompt, prompt, dtype=torch.bool, device=mask.device).tril()
    seen[:, prompt:, :prompt] = True
    seen[:, :, :prompt] &= mask.bool().unsqueeze(1)
    seen[:, prompt:, prompt:] = tree.sees.to(mask.device)
    return seen | torch.eye(prompt + nodes, dtype=torch.bool, device=mask.device)


def _mask_of_layers(config: Any, seen: Bool[Tensor, "B S S"], positions: Int[Tensor, "B S"]) -> Tensor | dict[str, Tensor]:
    """The finished mask that transformers passes on to the layers; one for each kind where a model has several."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or (["full_attention"] if window is None else ["sliding_attention"]))
    masks = {"full_attention": seen.unsqueeze(1)}
    if window is not None:
        near = positions.unsqueeze(2) - positions.unsqueeze(1) < window
        masks["sliding_attention"] = (seen & near).unsqueeze(1)
    return masks[kinds.pop()] if len(kinds) == 1 else masks
