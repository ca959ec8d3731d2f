"""What predictions are worth: arrays in, a dict of numbers out. Nothing here knows a model or a file."""

from tasks.metrics.calibration import Bin, calibration, reliability
from tasks.metrics.classification import binary, class_report, classification, confusion
from tasks.metrics.generation import generation, signatures
from tasks.metrics.likelihood import likelihood
from tasks.metrics.regression import regression
from tasks.metrics.retrieval import DEPTHS, retrieval
from tasks.metrics.sequence import entity_report, sequence

__all__ = [
    "DEPTHS",
    "Bin",
    "binary",
    "calibration",
    "class_report",
    "classification",
    "confusion",
    "entity_report",
    "generation",
    "likelihood",
    "regression",
    "reliability",
    "retrieval",
    "sequence",
    "signatures",
]
