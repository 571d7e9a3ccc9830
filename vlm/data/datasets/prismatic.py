"""The merged training sets of Prismatic (Karamcheti et al. 2024, arXiv:2402.07865) as mixes of their parts.

Prismatic's scripts join the lists into one file and shuffle it three times with seed 7. Here each part is prepared once and read after the other; the rows
are the same, only their order differs, and training shuffles it anyway. Prismatic stops at a missing picture where such a row is left out here.
"""

from functools import partial

from vlm.data.datasets.base import DatasetSpec

_mix = partial(
    DatasetSpec,
    license="that of each part",
    source="https://github.com/TRI-ML/prismatic-vlms",
    citation="Siddharth Karamcheti et al. Prismatic VLMs: Investigating the Design Space of Visually-Conditioned Language Models. ICML 2024. arXiv:2402.07865",
)

SPECS = {
    "llava-lvis4v": _mix(
        parts=("llava-v1.5-instruct", "lvis-instruct-4v"),
        description="888k conversations: LLaVA v1.5 and LVIS-Instruct4V",
        aliases=("llava_v1_5_lvis4v_mix888k",),
    ),
    "llava-lrv": _mix(
        parts=("llava-v1.5-instruct", "lrv-instruct"),
        description="1,008k conversations: LLaVA v1.5 and LRV-Instruct",
        aliases=("llava_v1_5_lrv_mix1008k",),
    ),
    "llava-lvis4v-lrv": _mix(
        parts=("llava-v1.5-instruct", "lvis-instruct-4v", "lrv-instruct"),
        description="1,231k conversations: LLaVA v1.5, LVIS-Instruct4V and LRV-Instruct",
        aliases=("llava_v1_5_lvis4v_lrv_mix1231k",),
    ),
}
