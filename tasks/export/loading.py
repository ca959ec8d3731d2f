"""What a model card says of how to load the folder: transformers, sentence-transformers, and servers."""

from pathlib import Path

from config.supervised_schema import HEADED
from model.hf import architecture
from model.hf.task_heads import TEXT, TOKENS
from tasks.checkpoints import Trained
from tasks.embedding import Embedder
from tasks.export import gguf_file, onnx_graph

PIPELINES = {"AutoModelForSequenceClassification": "text-classification", "AutoModelForTokenClassification": "ner"}
TEI = {"bert": ("cls", "mean"), "modernbert": ("cls", "mean"), "mistral": ("last",), "qwen3": ("last",)}
"""Architectures and poolings that text-embeddings-inference serves (its README and backends/candle/src)."""


def auto_class(trained: Trained) -> str:
    """Class of transformers that loads the model with its head."""
    return architecture(trained.config, trained.objective).auto_class


def usage(folder: Path, trained: Trained, embedder: Embedder | None, *, heads: bool) -> str:
    """A section with Python code and commands, in which FOLDER stands for the folder."""
    parts = [_python(_transformers(trained))] if heads else []
    if embedder is not None:
        length = "length 1" if embedder.normalize else "not normalised"
        parts.append(
            _python(
                "from sentence_transformers import SentenceTransformer\n\n"
                f"# pooling {embedder.pooling}, {embedder.dimensions} dimensions, {length}\n"
                'vectors = SentenceTransformer("FOLDER").encode(["a text", "another"])'
            )
        )
    parts.append("```sh\n" + "\n".join(servers(trained, embedder, heads=heads)) + "\n```")
    if (folder / onnx_graph.FILE).is_file():
        output = "logits" if heads and isinstance(trained.objective, HEADED) else "last_hidden_state"
        parts.append(f"`{onnx_graph.FILE}` gives {output} from input_ids and attention_mask, in fp32.")
    if (folder / gguf_file.FILE).is_file():
        parts.append(f"`{gguf_file.FILE}` is for llama.cpp: `llama-completion -m {gguf_file.FILE} -p TEXT`.")
    return "## Use\n\n" + "\n\n".join(parts)


def servers(trained: Trained, embedder: Embedder | None, *, heads: bool) -> list[str]:
    """Commands of the servers whose sources say that they read such a folder; they are not run by the export."""
    theirs = architecture(trained.config, trained.objective if heads else None)
    kind, encoder = theirs.auto_class.removeprefix("AutoModelFor"), trained.config.family == "bert"
    commands = ["python -m tasks serve FOLDER  # Groundwork"]
    if not heads or kind in ("CausalLM", TEXT) or (kind == TOKENS and encoder):
        commands.append("vllm serve FOLDER")
    vectors = embedder is not None and embedder.pooling in TEI.get(theirs.model_type, ())
    biased = theirs.model_type == "modernbert" and trained.config.bias  # it leaves the biases of such a model out
    if (vectors or (heads and kind == TEXT and encoder)) and not biased:
        commands.append("text-embeddings-router --model-id FOLDER")
    return commands


def _transformers(trained: Trained) -> str:
    name = auto_class(trained)
    if name in PIPELINES:
        return f'from transformers import pipeline\n\nprint(pipeline("{PIPELINES[name]}", model="FOLDER")("a text"))'
    return (
        f"from transformers import AutoTokenizer, {name}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = {name}.from_pretrained("FOLDER")'
    )


def _python(code: str) -> str:
    return f"```python\n{code}\n```"
