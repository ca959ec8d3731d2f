"""How far our models are from transformers', in float32 on random weights, as a Markdown table: python -m benchmarks.parity

Differences are the largest of all elements, as a share of the largest expected magnitude.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

import model
from config import BertConfig, GPTConfig, T5Config, TransformerConfig
from model.convert import to_hf_names
from model.hf import architecture, to_hf_config
from tasks.export.check import check_model

SIZES: dict[str, Any] = dict(vocab_size=512, num_layers=4, hidden_size=64, num_heads=4, max_positions=128, init_std=0.1)
CONFIGS: dict[str, TransformerConfig] = {
    "GPT-2": GPTConfig(preset="gpt2", **SIZES),
    "Llama": GPTConfig(preset="llama", num_kv_heads=2, **SIZES),
    "Mistral, window 9": GPTConfig(preset="mistral", num_kv_heads=2, sliding_window=9, **SIZES),
    "Qwen3": GPTConfig(preset="qwen3", num_kv_heads=2, head_size=32, **SIZES),
    "BERT, pairs, padded": BertConfig(preset="bert", **SIZES, dropout=0.0),
    "ModernBERT, window 9, padded": BertConfig(preset="modernbert", **SIZES | {"num_layers": 6}, local_window=9),
    "T5 1.1, padded": T5Config(**SIZES | {"init_std": 1.0}),
}
ROWS, LENGTH = 3, 48
LENGTHS = [48, 11, 30]


def main() -> None:
    print("| architecture | class | theirs here: logits | loss | gradients | ours there: logits |")
    print("|---|---|--:|--:|--:|--:|")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        with TemporaryDirectory() as folder:
            inward = compare(config, Path(folder))
            outward = export(config, Path(folder) / "ours")
        cells = [*inward.values(), outward]
        print(
            f"| {name} | {architecture(config).class_name} | {' | '.join(f'{cell:.1e}' for cell in cells)} |",
            flush=True,
        )


def export(config: TransformerConfig, folder: Path) -> float:
    """Our random weights, loaded by transformers."""
    ours = model.build(config)
    model.init_weights(ours, config, seed=1)
    model.save_hf(folder, config, perturb(ours).state_dict())
    return check_model(folder, ours, "float32", 1.0)


def compare(config: TransformerConfig, folder: Path) -> dict[str, float]:
    """Their random weights, loaded here: differences of logits, loss and gradients."""
    theirs = perturb(random_model(config, folder).eval())
    theirs.save_pretrained(folder)
    loaded, state = model.load_hf(folder)
    ours = model.build(loaded, loss_chunk_tokens=17)
    ours.load_state_dict(state)
    results = {"bert": of_bert, "t5": of_t5}.get(config.family, of_gpt)(ours.eval(), theirs)
    for loss in results["loss"]:
        loss.backward()
    named = {name: p.grad for name, p in ours.named_parameters(remove_duplicate=False) if p.grad is not None}
    gradients = to_hf_names(loaded, named)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    ours_N, theirs_N = (torch.cat([grads[name].flatten() for name in expected]) for grads in (gradients, expected))
    results["gradients"] = ours_N, theirs_N
    return {what: difference(*both) for what, both in results.items()}


def random_model(config: TransformerConfig, folder: Path) -> Any:
    """Theirs, untrained."""
    auto_class = getattr(transformers, architecture(config).auto_class)
    if config.family == "t5":  # transformers 5 gives a T5 a head of its own only if there is one in the file
        ours = model.build(config)
        model.init_weights(ours, config, seed=0)
        model.save_hf(folder, config, ours.state_dict())
        return auto_class.from_pretrained(folder)
    settings = to_hf_config(config, dtype="float32")
    settings["pad_token_id"] = None  # its embedding would not be trained
    return auto_class.from_config(transformers.AutoConfig.for_model(**settings))


def of_gpt(ours: Any, theirs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    tokens_BT = draw(ours)
    labels_BT = tokens_BT.roll(-1, dims=1)
    labels_BT[:, -1] = model.IGNORE
    output, loss = theirs(tokens_BT, labels=tokens_BT, shift_labels=labels_BT), ours(tokens_BT, labels_BT)
    return {"logits": (ours.logits(ours(tokens_BT)), output.logits), "loss": (loss.total / loss.count, output.loss)}


def of_bert(ours: Any, theirs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    tokens_BT, types_BT, pairs_B = draw(ours), torch.randint(2, (ROWS, LENGTH)), torch.tensor([0, 1, 1])
    layout, text_BT = model.Layout.padded(LENGTHS, LENGTH), padding(LENGTHS)
    labels_BT = tokens_BT.masked_fill(~text_BT | (torch.rand(ROWS, LENGTH) > 0.3), model.IGNORE)
    more = dict(token_type_ids=types_BT, next_sentence_label=pairs_B) if ours.config.pooler else {}
    output = theirs(tokens_BT, attention_mask=text_BT.long(), labels=labels_BT, **more)
    losses = ours(tokens_BT, labels_BT, layout, types_BT, pairs_B if more else None)
    logits_BTV = ours.logits(ours(tokens_BT, layout=layout, token_types_BT=types_BT))
    return {
        "logits": (logits_BTV[text_BT], output[1][text_BT]),
        "loss": (torch.stack([loss.total / loss.count for loss in losses.values()]).sum(), output.loss),
    }


def of_t5(ours: Any, theirs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    source_BS, tokens_BT, labels_BT = draw(ours), draw(ours), draw(ours)
    layout, text_BS = model.Layout.padded(LENGTHS, LENGTH), padding(LENGTHS)
    output = theirs(source_BS, attention_mask=text_BS.long(), decoder_input_ids=tokens_BT, labels=labels_BT)
    loss = ours(source_BS, tokens_BT, labels_BT, source_layout=layout)
    logits_BTV = ours.logits(ours(source_BS, tokens_BT, source_layout=layout))
    return {"logits": (logits_BTV, output.logits), "loss": (loss.total / loss.count, output.loss)}


def perturb(module: Any) -> Any:
    """Move norms and biases away from 1 and 0, where a mistake would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return module


def draw(ours: Any) -> Tensor:
    return torch.randint(ours.config.vocab_size, (ROWS, LENGTH))


def padding(lengths: list[int]) -> Tensor:
    """True where a row has text."""
    return torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    main()
