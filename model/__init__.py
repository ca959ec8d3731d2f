"""Floor 1: tensors in, tensors out. Knows config, and nothing of data, DeepSpeed or files of a run."""

from model.bert import Bert
from model.build import Model, build, compile_blocks
from model.convert import load_hf, load_hf_objective, save_hf
from model.generation import Generation, generate
from model.gpt import GPT
from model.head import IGNORE, Loss
from model.init import init_weights, initial_elements, initial_weight
from model.kernels import Kernel, choose_kernel
from model.layout import Layout
from model.spec import AttentionSpec
from model.t5 import T5
from model.task_head import TaskHead, TaskLoss, set_task_head

__all__ = [
    "GPT",
    "IGNORE",
    "T5",
    "AttentionSpec",
    "Bert",
    "Generation",
    "Kernel",
    "Layout",
    "Loss",
    "Model",
    "TaskHead",
    "TaskLoss",
    "build",
    "choose_kernel",
    "compile_blocks",
    "generate",
    "init_weights",
    "initial_elements",
    "initial_weight",
    "load_hf",
    "load_hf_objective",
    "save_hf",
    "set_task_head",
]
