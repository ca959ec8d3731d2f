"""Floor 1: tensors in, tensors out. Knows config, and nothing of data, DeepSpeed or files of a run."""

from model.convert import load_hf, save_hf
from model.generation import Generation, generate
from model.gpt import GPT, build, compile_blocks
from model.head import IGNORE, Loss
from model.init import init_weights, initial_weight
from model.kernels import Kernel, choose_kernel
from model.layout import Layout

__all__ = [
    "GPT",
    "IGNORE",
    "Generation",
    "Kernel",
    "Layout",
    "Loss",
    "build",
    "choose_kernel",
    "compile_blocks",
    "generate",
    "init_weights",
    "initial_weight",
    "load_hf",
    "save_hf",
]
