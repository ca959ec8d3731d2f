"""Exports beside transformers' files: sentence-transformers, ONNX, GGUF and the card, each read by its own software."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from config import CheckpointError, ConfigError
from config.objective_schema import CausalLM, Classification, Contrastive, MaskedLM, TokenClassification
from config.supervised_schema import Instruction
from data.chat import PROMPTS, TEMPLATE, compile_template
from data.tokenizer import Tokenizer, byte_tokenizer
from data.vocabulary import train_tokenizer
from model import set_task_head
from tasks.checkpoints import Trained, load_model
from tasks.embedding import Embedder
from tasks.export import gguf_file, onnx_graph
from tasks.export.folder import export
from tasks.export.llama_cpp import _ask
from tasks.sentence_layout import SentenceLayout
from tests.conftest import ROOT
from tests.model.tiny import tiny_config, tiny_model
from tests.tasks.framed import framed_bytes
from tests.tasks.hugging_face import edit

TEXTS = ["a text", "another, longer text about something else", "x" * 300]
ENCODERS = {
    "bert": tiny_config("bert", vocab_size=320),
    "modernbert": tiny_config("modernbert", vocab_size=320, num_layers=4, local_window=5, max_positions=256),
}
DECODERS = {
    "llama": tiny_config("llama", vocab_size=448),
    "llama with biases, tied": tiny_config("llama", vocab_size=448, tied_embeddings=True, bias=True, head_size=16),
    "qwen3": tiny_config("qwen3", vocab_size=448, head_size=16),
    "gpt2": tiny_config("gpt2", vocab_size=448),
}


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return train_tokenizer([(ROOT / name).read_text() for name in ("train.py", "README.md", "CONTRIBUTING.md")], 400)


@pytest.fixture
def use(monkeypatch):
    """Makes a random tiny model the one that every path leads to."""

    def use(config, objective, tokenizer=None, **facts) -> Trained:
        tokenizer = tokenizer or (framed_bytes() if config.family == "bert" else byte_tokenizer())
        model = tiny_model(config)
        set_task_head(model, objective)
        trained = Trained(model.eval(), tokenizer, config, objective, None, **facts)
        monkeypatch.setattr("tasks.export.folder.load_model", lambda path, device: trained)
        return trained

    return use


def states(trained: Trained, text: str) -> torch.Tensor:
    """Token states [T, D] of [CLS] text [SEP], or of the text alone in a decoder; cut as sentence-transformers cuts."""
    ids, room = trained.tokenizer.encode(text), trained.config.max_positions
    if trained.config.family == "bert":
        begin, end = trained.tokenizer.ids_of(["[CLS]", "[SEP]"])
        ids = [begin, *ids[: room - 2], end]
    with torch.no_grad():
        return trained.model(torch.tensor([ids[:room]]))[0]


POOL = {"cls": lambda x_TD: x_TD[0], "mean": lambda x_TD: x_TD.mean(0), "last": lambda x_TD: x_TD[-1]}


@pytest.mark.parametrize(
    "config, objective, wishes",
    [
        (ENCODERS["bert"], MaskedLM(), {}),
        (ENCODERS["bert"], MaskedLM(), {"pooling": "cls", "dimensions": 12}),
        (ENCODERS["bert"], Classification(labels=("a", "b")), {"pooling": "mean", "normalize": False}),
        (ENCODERS["modernbert"], Contrastive(pooling="mean"), {}),
        (DECODERS["qwen3"], CausalLM(), {"pooling": "last"}),
        (DECODERS["gpt2"], CausalLM(), {"pooling": "mean", "dimensions": 20, "normalize": False}),
    ],
    ids=["bert, default", "bert, cls", "bert, fine-tuned", "modernbert, contrastive", "qwen3, last", "gpt2, mean"],
)
def test_sentence_transformers_makes_the_same_vectors(config, objective, wishes, use, tmp_path):
    """And the folder, read back, makes them too."""
    trained = use(config, objective)
    pooling, dimensions, length_1 = (wishes.get(wish) for wish in ("pooling", "dimensions", "normalize"))
    export(tmp_path, tmp_path / "out", **wishes)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert theirs.max_seq_length == config.max_positions
    expected_ND = torch.stack([POOL[pooling or "mean"](states(trained, text)) for text in TEXTS])[:, :dimensions]
    if length_1 is None:
        expected_ND = torch.nn.functional.normalize(expected_ND, dim=1)
    np.testing.assert_allclose(theirs.encode(TEXTS), expected_ND.numpy(), atol=1e-6)
    again = load_model(tmp_path / "out", torch.device("cpu"))
    np.testing.assert_allclose(Embedder(again).encode(TEXTS).numpy(), expected_ND.numpy(), atol=1e-6)
    assert again.layout == SentenceLayout(pooling or "mean", dimensions, length_1 is None)
    hf = json.loads((tmp_path / "out/config.json").read_text())
    assert hf["architectures"][0].endswith("Model") == (bool(wishes) or isinstance(objective, Contrastive))
    # What vLLM and TEI read: switches of the pooling, and the types of the modules by their old names.
    switches = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    assert [name for name, value in switches.items() if name.startswith("pooling_mode") and value] == [
        {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}[
            pooling or "mean"
        ]
    ]
    modules = [module["type"] for module in json.loads((tmp_path / "out/modules.json").read_text())]
    assert (modules[-1] == "sentence_transformers.models.Normalize") == (length_1 is None)


@pytest.mark.parametrize(
    "change",
    [{"weight": 2 * torch.eye(12, 32)}, {"weight": torch.eye(32)[20:]}, {"activation": "Tanh"}, {"order": True}],
    ids=["scaled", "the last", "tanh", "after the length"],
)
def test_another_dense_layer_is_refused(change, use, tmp_path):
    use(ENCODERS["bert"], MaskedLM())
    out = tmp_path / "out"
    export(tmp_path, out, pooling="cls", dimensions=12)
    if "weight" in change:
        save_file({"linear.weight": change["weight"].contiguous()}, out / "2_Dense/model.safetensors")
    elif "activation" in change:
        edit(out / "2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh")
    else:
        modules = json.loads((out / "modules.json").read_text())
        (out / "modules.json").write_text(json.dumps([*modules[:2], modules[3], modules[2]]))
    with pytest.raises(ConfigError, match="a Dense in 2_Dense is not supported, only"):
        load_model(out, torch.device("cpu"))


@pytest.mark.parametrize(
    "name, pooling, switch",
    [("qwen3", "last", "pooling_mode_lasttoken"), ("bert", "cls", "pooling_mode_cls_token")],
)
def test_servers_find_how_a_vector_is_made(name, pooling, switch, use, tmp_path):
    """What vLLM (transformers_utils/config.py, models/adapters.py) and text-embeddings-inference (router/src/lib.rs,
    backends/candle/src/models/dense.rs) read of an embedding model. Neither runs here."""
    config = {**ENCODERS, **DECODERS}[name]
    use(config, MaskedLM() if name == "bert" else CausalLM())
    export(tmp_path, tmp_path / "out", "bfloat16", pooling=pooling, dimensions=12)

    def read(file: str) -> dict:
        return json.loads((tmp_path / "out" / file).read_text())

    kinds = [(module["type"], module["path"]) for module in read("modules.json")]
    names = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    assert kinds == [(f"sentence_transformers.models.{kind}", path) for kind, path in names.items()]
    switches = read("1_Pooling/config.json")
    assert [key for key, value in switches.items() if value is True and key.startswith("pooling_mode_")] == [switch]
    needed = {f"pooling_mode_{mode}" for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
    assert needed <= switches.keys()
    dense = read("2_Dense/config.json")
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (32, 12, False)
    assert dense["activation_function"] == "torch.nn.modules.linear.Identity"
    assert read("sentence_bert_config.json")["max_seq_length"] == config.max_positions
    hf, words = read("config.json"), read("tokenizer_config.json")
    assert hf["architectures"] == [{"qwen3": "Qwen3Model", "bert": "BertModel"}[name]] and hf["dtype"] == "bfloat16"
    assert 0 <= hf["eos_token_id"] < hf["vocab_size"] and words["pad_token"] in ("[PAD]", "<|endoftext|>")
    assert words["model_max_length"] == hf["max_position_embeddings"] == config.max_positions


def test_a_decoder_that_only_writes_has_no_pooling(use, tmp_path):
    use(DECODERS["llama"], CausalLM())
    export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/modules.json").exists()


def test_a_wrong_pooling_leaves_nothing(use, tmp_path, monkeypatch):
    use(ENCODERS["bert"], MaskedLM())
    monkeypatch.setattr(
        "tasks.export.sentence.MODES", {"mean": "pooling_mode_cls_token", "cls": "pooling_mode_mean_tokens"}
    )
    with pytest.raises(CheckpointError, match=r"vectors of sentence-transformers differ by .*, more than 1e-05"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, objective",
    [
        ("modernbert", MaskedLM()),
        ("bert", Classification(labels=("a", "b", "c"))),
        pytest.param("modernbert", TokenClassification(labels=("O", "B")), marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_onnxruntime_computes_the_same(name, objective, use, tmp_path):
    """Token states, or the scores of a task."""
    import onnxruntime

    trained = use(ENCODERS[name], objective)
    differences = export(tmp_path, tmp_path / "out", onnx=True)
    assert differences["outputs of ONNX"] <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / onnx_graph.FILE)
    tokens_BT = torch.randint(320, (5, 17), generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": tokens_BT.numpy(), "attention_mask": torch.ones_like(tokens_BT).numpy()}
    if name == "bert":
        inputs["token_type_ids"] = torch.zeros_like(tokens_BT).numpy()
    with torch.no_grad():
        expected = trained.model(tokens_BT)
        if objective.name != "masked_lm":
            expected = trained.model.lm_head(expected if objective.name == "token_classification" else expected[:, 0])
    output = "last_hidden_state" if objective.name == "masked_lm" else "logits"
    np.testing.assert_allclose(session.run([output], inputs)[0], expected.numpy(), atol=1e-4)


def test_a_wrong_graph_leaves_nothing(use, tmp_path, monkeypatch):
    use(ENCODERS["bert"], MaskedLM())
    right = onnx_graph.Output.forward

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        return right(self, input_ids, attention_mask, token_type_ids) * 1.001

    monkeypatch.setattr(onnx_graph.Output, "forward", forward)
    with pytest.raises(CheckpointError, match=r"outputs of the ONNX graph differ by .* more than 0\.0001"):
        export(tmp_path, tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", DECODERS)
def test_llama_cpp_computes_the_same(name, dtype, use, bpe, tmp_path):
    """The export asks llama.cpp itself; what the file says is read once more by the gguf package's reader."""
    config = DECODERS[name]
    trained = use(config, CausalLM(), bpe)
    difference = export(tmp_path, tmp_path / "out", dtype, gguf=True)["log-probabilities of llama.cpp"]
    assert difference <= (5e-2 if dtype == "bfloat16" else 1e-2 if name == "gpt2" else 2e-5)
    reader = gguf.GGUFReader(tmp_path / "out" / gguf_file.FILE)
    tensors = {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(list(reversed(t.shape.tolist()))) for t in reader.tensors
    }
    state = trained.model.state_dict()
    np.testing.assert_array_equal(tensors["token_embd.weight"], state["embed_tokens.weight"].float().numpy())
    down = "blocks.1.feed_forward.down_proj.weight"
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight"], state[down].float().numpy())
    assert ("output.weight" in tensors) == (not config.tied_embeddings)
    matrix = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    assert matrix.tensor_type.name == {"float32": "F32", "bfloat16": "BF16"}[dtype]
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == 448 and tokens.contents(bpe.eod_id) == "<|endoftext|>"


@pytest.mark.parametrize("template", [TEMPLATE, PROMPTS], ids=["conversations", "prompts"])
def test_llama_cpp_reads_conversations_as_in_training(template, use, bpe, tmp_path, monkeypatch):
    trained = use(DECODERS["llama"], Instruction(), bpe)
    monkeypatch.setattr(Trained, "chat_template", template)
    export(tmp_path, tmp_path / "out", gguf=True)
    turns = [("system", "Count."), ("user", "How many? "), ("assistant", "two"), ("user", "And?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (answer,) = _ask(tmp_path / "out" / gguf_file.FILE, [("apply-template", {"messages": messages})])
    render = compile_template(template, trained.tokenizer.eod_token)
    assert answer["prompt"] == render(messages=messages, add_generation_prompt=True)


def test_a_llama_whose_queries_are_not_interleaved_leaves_nothing(use, bpe, tmp_path, monkeypatch):
    use(DECODERS["llama"], CausalLM(), bpe)
    monkeypatch.setattr(gguf_file, "interleaved", lambda tensor, width: tensor)
    with pytest.raises(CheckpointError, match=r"log-probabilities of llama.cpp differ by"):
        export(tmp_path, tmp_path / "out", gguf=True)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_under_a_wrong_name_leaves_nothing(use, bpe, tmp_path, monkeypatch):
    use(DECODERS["llama"], CausalLM(), bpe)
    monkeypatch.setattr(gguf_file, "pre_tokenizer", lambda tokenizer: "bloom")
    with pytest.raises(CheckpointError, match=r"tokens of .* in llama.cpp"):
        export(tmp_path, tmp_path / "out", gguf=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config, wishes, message",
    [
        (
            ENCODERS["bert"],
            {"gguf": True},
            r"--gguf is for decoders.*family bert: leave it out; --onnx is for encoders",
        ),
        (
            DECODERS["llama"],
            {"onnx": True},
            r"--onnx is for encoders.*family gpt: leave it out; --gguf is for decoders",
        ),
        (DECODERS["llama"], {"gguf": True}, r"no equivalent of this tokenizer"),
        (tiny_config("mistral", sliding_window=9), {"gguf": True}, r"sliding_window 9 has no equivalent in llama\.cpp"),
        (tiny_config("gpt2", activation="relu"), {"gguf": True}, r"gpt2 computes activation gelu_tanh, not relu"),
        (ENCODERS["bert"], {"dimensions": 33}, r"dimensions 33: the model has 32"),
        (DECODERS["llama"], {"pooling": "cls"}, r"pooling cls is the first token's state"),
    ],
)
def test_what_a_format_does_not_have_is_refused(config, wishes, message, use, tmp_path):
    use(config, CausalLM() if config.family == "gpt" else MaskedLM())
    with pytest.raises(ConfigError, match=message):
        export(tmp_path, tmp_path / "out", **wishes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wish, package", [("onnx", "onnxruntime"), ("gguf", "xllamacpp")])
def test_a_missing_package_is_one_message(wish, package, use, bpe, tmp_path, monkeypatch):
    use(ENCODERS["bert"] if wish == "onnx" else DECODERS["llama"], CausalLM(), bpe)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed: pip install -e '\.\[export\]'"):
        export(tmp_path, tmp_path / "out", **{wish: True})


def front_matter(folder: Path) -> dict:
    _, facts, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(facts)


def test_the_card_of_a_folder_without_a_run(use, tmp_path):
    use(ENCODERS["bert"], Contrastive(pooling="cls"))
    export(tmp_path, tmp_path / "out")
    assert front_matter(tmp_path / "out") == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["groundwork", "bert", "sentence-transformers", "sentence-similarity", "feature-extraction"],
    }
    text = (tmp_path / "out/README.md").read_text()
    assert "pooling cls, 32 dimensions" in text and "AutoModel" not in text


@pytest.mark.slow
def test_the_card_of_a_run(recipe, tmp_path):
    """Its Python code runs, its recipe loads, and it says what the run measured."""
    from config import load_recipe
    from tests.conftest import train

    result = train(recipe, "schedule.steps=4", "validation.every_steps=2")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    export(tmp_path / "runs/tiny", out)
    text = (out / "README.md").read_text()
    records = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    measured = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert f"| validation loss | {measured[-1]:.4f} |" in text and "| validated after step | 4 |" in text
    settings = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(settings)
    assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe(str(tmp_path / "runs/tiny/recipe.yaml"))
    assert front_matter(out)["pipeline_tag"] == "text-generation"
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(out))
    names: dict = {}
    exec(code, names)
    assert names["model"].config.vocab_size == names["model"].get_input_embeddings().num_embeddings
