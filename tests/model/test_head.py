"""The chunked loss against torch's cross_entropy over all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.head import IGNORE, Head
from tests.model.tiny import assert_close, tiny_config

ROWS, LENGTH, VOCABULARY, WIDTH = 3, 20, 96, 32


def make_case(
    softcap: float | None = None, chunk_tokens: int = 16, bias: bool = False
) -> tuple[Head, torch.Tensor, torch.Tensor]:
    head = Head(tiny_config(logit_softcap=softcap), chunk_tokens=chunk_tokens, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    hidden_BTD = torch.randn(ROWS, LENGTH, WIDTH, generator=generator).requires_grad_()
    labels_BT = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels_BT[1, 3:9] = IGNORE
    return head, hidden_BTD, labels_BT


def plain_loss(head: Head, hidden_BTD: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden_BTD.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 60, 1000])
def test_loss_and_gradients_equal_cross_entropy(chunk_tokens, softcap, bias):
    head, hidden, labels = make_case(softcap, chunk_tokens, bias)
    expected = plain_loss(head, hidden, labels)
    expected_grads = torch.autograd.grad(expected * 0.37, [hidden, *head.parameters()])
    loss = head(hidden, labels)
    grads = torch.autograd.grad(loss.total * 0.37, [hidden, *head.parameters()])
    assert loss.count == 54 and loss.count.dtype == torch.int64 and loss.total.dtype == torch.float32
    assert_close(loss.total, expected, "loss")
    for name, grad, expected_grad in zip(("hidden", "weight", "bias"), grads, expected_grads, strict=False):
        assert_close(grad, expected_grad, f"gradient of {name}")
    with torch.no_grad():
        assert_close(head(hidden, labels).total, expected, "loss without gradients")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_stays_close(dtype, autocast):
    head, hidden, labels = make_case(bias=True)
    expected = plain_loss(head, hidden, labels)
    expected_grads = torch.autograd.grad(expected, [hidden, *head.parameters()])
    if not autocast:
        head, hidden = head.to(dtype), hidden.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = head(hidden, labels)
    grads = torch.autograd.grad(loss.total, [hidden, *head.parameters()])
    assert loss.total.dtype == torch.float32
    assert [g.dtype for g in grads] == [hidden.dtype, head.weight.dtype, head.bias.dtype]
    assert_close(loss.total, expected, "loss", tolerance=5e-3)
    for name, grad, expected_grad in zip(("hidden", "weight", "bias"), grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, f"gradient of {name}", tolerance=2e-2)


def test_extreme_logits_stay_finite():
    head, hidden, labels = make_case()
    loss = head(hidden * 1000, labels)
    loss.total.backward()
    assert loss.total.isfinite() and head.weight.grad.isfinite().all()
    assert_close(loss.total, plain_loss(head, hidden * 1000, labels), "loss")


def test_nothing_to_predict_is_zero():
    head, hidden, labels = make_case()
    loss = head(hidden, torch.full_like(labels, IGNORE))
    loss.total.backward()
    assert loss.total == 0 and loss.count == 0
    assert not hidden.grad.any() and not head.weight.grad.any()


class Recorder(TorchDispatchMode):
    """Notes the largest result and the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_memory_is_bounded_and_the_device_is_never_asked():
    head, hidden, labels = make_case(chunk_tokens=8)
    with Recorder() as recorder:
        head(hidden, labels).total.backward()
    assert recorder.largest == WIDTH * VOCABULARY > 8 * VOCABULARY, "the weight's gradient is the largest tensor"
    assert not recorder.names & {"_local_scalar_dense", "nonzero", "masked_select", "equal"}, "waits for the device"


def test_logits_are_capped():
    head, hidden, _ = make_case(softcap=4.0)
    expected = 4.0 * torch.tanh(hidden @ head.weight.T / 4.0)
    assert_close(head(hidden), expected, "logits")
