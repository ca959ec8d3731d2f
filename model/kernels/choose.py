"""The attention kernels, what each of them claims, and the choice between them."""

from collections.abc import Callable
from functools import partial

import torch

from config import Choice, ConfigError, TransformerConfig
from model.kernels.backend import FEATURES, Backend, Connection, Kernel, Prepare
from model.kernels.flash import connect_flash
from model.kernels.flex import connect_flex, with_block_mask
from model.kernels.reference import attend_reference, with_dense_mask
from model.kernels.sdpa import attend_sdpa, with_mask
from model.kernels.varlen import connect_varlen
from model.spec import needed_features

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MASKED = frozenset({"documents", "window"})


def connect_sdpa() -> Connection:
    return Connection(attend_sdpa, frozenset(FEATURES))


def connect_reference() -> Connection:
    return Connection(attend_reference, frozenset(FEATURES))


def _anywhere(name: str, connect: Callable[[], Connection], prepare: Prepare) -> Backend:
    return Backend(name, "PyTorch", connect, gpus=(), dtypes=FLOATS, largest_head=None, prepare=prepare)


BACKENDS = (
    Backend("flash", "flash-attn 4", partial(connect_flash, "flash_attn.cute"), gpus=(9, 10)),
    Backend("flash", "flash-attn 3", partial(connect_flash, "flash_attn_interface"), gpus=(9,)),
    Backend("flash", "flash-attn 2", partial(connect_flash, "flash_attn")),
    Backend("varlen", "torch.nn.attention.varlen", connect_varlen, pays_for=MASKED),
    Backend(
        "flex", "torch.nn.attention.flex_attention", connect_flex,
        dtypes=FLOATS[:3], pays_for=MASKED | {"softcap"}, prepare=with_block_mask,
    ),
    _anywhere("sdpa", connect_sdpa, with_mask),
    _anywhere("reference", connect_reference, with_dense_mask),
)  # fmt: skip
"""In order of preference. Those from sdpa on can do everything."""


def find_obstacle(backend: Backend, config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Why a backend cannot serve this model on this device, or an empty string."""
    if backend.gpus and device.type != "cuda":
        return f"needs a CUDA GPU, not {device.type}"
    if backend.gpus and torch.cuda.get_device_capability(device)[0] not in backend.gpus:
        return "has no kernel for compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    if dtype not in backend.dtypes:
        return f"computes in {', '.join(map(str, backend.dtypes))}, not {dtype}".replace("torch.", "")
    if backend.largest_head and (config.head_width % 8 or config.head_width > backend.largest_head):
        return f"needs a head size that is a multiple of 8 up to {backend.largest_head}, not {config.head_width}"
    try:
        features = backend.connect().features
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"is not usable: {error}"
    lacking = [f"{feature} ({why})" for feature, why in needed_features(config).items() if feature not in features]
    return f"has no {', no '.join(lacking)}" if lacking else ""


def choose_kernel(
    config: TransformerConfig, device: torch.device, dtype: torch.dtype, document_masking: bool, wanted: str = "auto"
) -> Choice[Kernel]:
    """The first backend that can compute attention of `config` on `device` in `dtype`, and why.

    Left to itself it passes over those that gain nothing for this model, as varlen does for whole rows.
    Raises ConfigError when the kernel asked for by name cannot work.
    """
    asked = needed_features(config).keys() | ({"documents"} if document_masking else set())
    passed_over: dict[str, list[str]] = {}
    for backend in BACKENDS:
        gains = not backend.pays_for or backend.pays_for & asked
        if wanted != backend.name and (wanted != "auto" or not gains):
            continue
        obstacle = find_obstacle(backend, config, device, dtype)
        if not obstacle:
            kernel = Kernel(backend.name, backend.connect().attend, backend.prepare)
            return Choice(kernel, "; ".join([f"from {backend.source}", *_explain(passed_over)]))
        passed_over.setdefault(obstacle, []).append(backend.source)
    why = "; ".join(_explain(passed_over))
    raise ConfigError(f"engine.kernel: {wanted} cannot be used here: {why}. Set engine.kernel=auto or sdpa.")


def _explain(passed_over: dict[str, list[str]]) -> list[str]:
    return [f"{', '.join(sources)}: {obstacle}" for obstacle, sources in passed_over.items()]
