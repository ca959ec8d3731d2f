"""GradCache (arXiv:2101.06983): each anchor among the candidates of the whole step, in the memory of one micro-batch.

A first pass takes the vectors of all micro-batches without a graph. The loss of all of them gives the gradient of each
vector; a second pass leads these, a micro-batch at a time, back through the model.

Letters: B anchors and R rows of a micro-batch, M candidates of this rank, N of all ranks, D width.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config.contrastive_schema import Similarity
from data.batch import Batch
from engine.objective import Objective, embed
from engine.similarity import Candidates, candidates_of, info_nce, of_all_ranks
from model.head import Loss


def cached_objectives(
    config: Similarity, model: nn.Module, batches: list[Batch], device: torch.device, reseed: Callable[[int], None]
) -> list[Objective]:
    """An objective for each of a step's micro-batches, which all ranks bring equally many of. Its value is the loss of the
    batch's anchors, its gradient that of the loss of all anchors of all ranks by what the batch computes.

    `reseed` sets the random state of a micro-batch, so that the second pass draws what the first did. Without gradients
    there is no second pass.
    """
    vectors: list[Tensor] = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            reseed(number)
            vector_RD, temperature = embed(model, batch, device, config)
            vectors.append(vector_RD)
    losses, gradients, temperature_gradient = _whole_loss(config, vectors, batches, temperature)
    share = temperature_gradient / len(batches)

    def second_pass(number: int) -> Objective:
        def objective(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Loss]:
            loss = losses[number]
            if torch.is_grad_enabled():
                reseed(number)
                vector_RD, temperature = embed(model, batch, device, config)
                led_back = (vector_RD * gradients[number]).sum() + (temperature * share).sum()
                loss = Loss(loss.total + led_back - led_back.detach(), loss.count)
            return {"contrastive": loss}

        return objective

    return [second_pass(number) for number in range(len(batches))]


def _whole_loss(
    config: Similarity, vectors: list[Tensor], batches: list[Batch], temperature: Tensor
) -> tuple[list[Loss], list[Tensor], Tensor]:
    """Of each micro-batch's anchors the loss, of its rows the gradients [R, D], and of the temperature this rank's share.

    Only one micro-batch's scores [B, N] exist at a time.
    """
    locals_ = [candidates_of(vector_RD, batch) for vector_RD, batch in zip(vectors, batches, strict=True)]
    candidates, first = of_all_ranks(_joined(locals_))
    learns = torch.is_grad_enabled()
    candidates.vector_ND.requires_grad_(learns)
    temperature = temperature.detach().requires_grad_(learns)
    losses, anchor_gradients, place = [], [], first
    for vector_RD, mine in zip(vectors, locals_, strict=True):
        anchor_BD = vector_RD[: len(vector_RD) - len(mine.vector_ND)].detach().requires_grad_(learns)
        own_B = torch.arange(place, place + len(anchor_BD), device=vector_RD.device)
        loss = info_nce(anchor_BD, own_B, candidates, temperature, config)
        if learns:
            loss.total.backward()
            assert anchor_BD.grad is not None
            anchor_gradients.append(anchor_BD.grad)
        losses.append(Loss(loss.total.detach(), loss.count))
        place += len(mine.vector_ND)
    if not learns:
        return losses, [], temperature
    gradient_ND = candidates.vector_ND.grad
    assert gradient_ND is not None
    if dist.is_initialized():
        dist.all_reduce(gradient_ND)
    sizes = [len(mine.vector_ND) for mine in locals_]
    pieces = gradient_ND[first : first + sum(sizes)].split(sizes)
    gradients = [torch.cat(sides) for sides in zip(anchor_gradients, pieces, strict=True)]
    return losses, gradients, temperature.grad if temperature.grad is not None else torch.zeros_like(temperature)


def _joined(of_batches: list[Candidates]) -> Candidates:
    """The candidates of several micro-batches, one after the other."""
    vectors, counts, texts, anchors = zip(*of_batches, strict=True)
    numbered = texts[0] is not None
    return Candidates(
        torch.cat(vectors),
        torch.cat(counts),
        torch.cat(texts) if numbered else None,
        torch.cat(anchors) if numbered else None,
    )
