"""When a run validates, and what follows from it."""

from pydantic import model_validator

from config.section import NonNegativeInt, PositiveInt, Section


class ValidationSection(Section):
    """Loss on the held-out split, always the same rows. Of a language model also its exponential (perplexity) and, with a
    byte-level tokenizer, its bits for each UTF-8 byte of the text among the targets, of hidden tokens under masked_lm.
    What a seq2seq or instruction model writes is judged by `python -m tasks evaluate --examples` (BLEU, chrF)."""

    every_steps: NonNegativeInt = 250
    """Steps between validations; the last step validates too; 0 turns validation off."""
    rows: PositiveInt = 64
    """Rows of the fixed held-out set, or all there are if fewer. Of labelled examples all are read."""
    metric: str = "loss"
    """What tells the best validation: loss, or a score that the objective reports, such as accuracy, f1 or spearman."""
    keep_best: bool = False
    """Save a checkpoint after each validation that is better than all before, and keep the best one."""
    patience: NonNegativeInt = 0
    """Validations without a better one after which the run ends early; 0: never."""

    @model_validator(mode="after")
    def _check_validates(self) -> "ValidationSection":
        for name in ("patience", "keep_best"):
            if getattr(self, name) and not self.every_steps:
                raise ValueError(f"{name} goes by validations, and every_steps 0 turns them off: set one of them")
        return self

    def is_due(self, step: int, last: int) -> bool:
        return self.every_steps > 0 and (step == last or step % self.every_steps == 0)

    def has_lost_patience(self, step: int, best_step: int) -> bool:
        """Whether the run ends after `step`, the best validation so far having been after `best_step`."""
        return self.patience > 0 and step - best_step >= self.patience * self.every_steps
