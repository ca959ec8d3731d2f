"""The published models of PyTorchJob and JobSet as judges: unknown fields and wrong types are problems."""

import re
from typing import Any

import kubernetes.client.models as core
from kubeflow.training import models as training
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pydantic import ValidationError

SCALARS = {"str": str, "int": int, "float": float, "bool": bool, "datetime": str}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What the cluster's schema has against a manifest."""
    if manifest["kind"] == "JobSet":
        return jobset_problems(manifest)
    return list(model_problems(manifest, "KubeflowOrgV1PyTorchJob", manifest["kind"]))


def jobset_problems(manifest: dict[str, Any]) -> list[str]:
    """The pydantic models check types and leave out fields that they do not know, so what comes back must be the same."""
    try:
        known = JobsetV1alpha2JobSet.from_dict(manifest)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    assert known is not None
    return differences(manifest, known.to_dict(), "JobSet")


def differences(given: Any, known: Any, place: str) -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        unknown = [f"{place}.{key}: no such field" for key in given.keys() - known.keys()]
        return unknown + [
            p for key in given.keys() & known.keys() for p in differences(given[key], known[key], f"{place}.{key}")
        ]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        return [p for i, pair in enumerate(zip(given, known, strict=True)) for p in differences(*pair, f"{place}.{i}")]
    return [] if given == known else [f"{place}: {given!r} is not {known!r}"]


def model_problems(value: Any, kind: str, place: str):
    """Generated models name their fields and types in two tables."""
    if many := re.fullmatch(r"list\[(.*)\]", kind):
        items = value if isinstance(value, list) else [None]
        for number, item in enumerate(items):
            yield from model_problems(item, many[1], f"{place}.{number}")
    elif mapping := re.fullmatch(r"dict\(str, (.*)\)", kind):
        for key, item in value.items():
            yield from model_problems(item, mapping[1], f"{place}.{key}")
    elif kind in SCALARS:
        if type(value) is not SCALARS[kind]:
            yield f"{place}: {value!r} is not {kind}"
    elif kind != "object":
        model = getattr(training, kind, None) or getattr(core, kind)
        types = {model.attribute_map[name]: type_ for name, type_ in model.openapi_types.items()}
        for key, item in value.items():
            if key not in types:
                yield f"{place}.{key}: no such field"
            else:
                yield from model_problems(item, types[key], f"{place}.{key}")
