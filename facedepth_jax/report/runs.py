"""Read finished runs for the report: checked, judged by a verifier, folds pooled."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facedepth_jax import config, estimator, files, metrics, tables, verification
from facedepth_jax.data import arrays
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.methods import METHODS

MEASURED = ("test", "validation", "baseline_mean_map")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      path, config, results: its directory, and there config.json (upgraded) and results.json, plain values.
      verification: the figures of its depth maps, as `verification.verify_lists` gives them.
      folds: the runs that it was pooled from.
    """

    path: Path
    config: dict
    results: dict
    verification: dict | None = None
    folds: tuple["Run", ...] = ()

    @property
    def method(self) -> str:
        return self.results["method"]

    @property
    def seed(self) -> int:
        return self.results["seed"]

    @property
    def lam(self) -> float | None:
        """Weight of the reconstruction in Eq. 5; the other methods have none."""
        return self.config["loss"].get("lam")

    @property
    def discriminator_pixels(self) -> str | None:
        """Where the cGAN's discriminator saw the generated map, "all" or "valid"; the other methods have none."""
        pixels = self.config["loss"].get("discriminator_pixels")
        return {"camera": "all", "head": "valid"}[self.origin] if pixels == "learnt" else pixels

    @property
    def origin(self) -> str:
        """Where its depth is counted from, see `depth_code.DepthCode`."""
        return self.config["depth_code"]["origin"]

    @property
    def settings(self) -> dict:
        """Values that decide the figures besides those above and the seed; the data has a fingerprint of its own."""
        loss = {key: value for key, value in self.config["loss"].items() if key not in ("lam", "discriminator_pixels")}
        others = ("seed", "data", "every", "watchdog_sec")
        return {key: value for key, value in self.config.items() if key not in others} | {"loss": loss}

    @property
    def steps(self) -> list[int]:
        """The step at which the weights were kept, of every fold."""
        return [run.results["step"] for run in self.folds or (self,)]


def read(paths: Sequence[Path], verifiers: Sequence[Path] = ()) -> tuple[list[Run], dict[tuple[str, str], dict]]:
    """Read finished runs and pool their folds; with verifiers, verify the runs that have not been verified yet.

    Args:
      verifiers: none, or one for each data set (or fold) and origin of depth of the runs.

    Returns:
      The runs, and {(fingerprint of the data, origin of depth): "bounds" of its verifier's results.json}.

    Raises:
      FaceDepthError: a run or a verifier cannot be used, or two verifiers are of the same data and origin.
    """
    runs, judges = [_read(path, "generator") for path in paths], {}
    for judge in (_read(path, "verifier") for path in verifiers):
        other = judges.setdefault((judge.results["fingerprint"], judge.origin), judge)
        if other is not judge:
            raise FaceDepthError(
                f"{other.path} and {judge.path} are verifiers of the same data: give one of them "
                f"for depth from the {judge.origin}."
            )
    if judges:
        runs = [dataclasses.replace(run, verification=_verify(run, judges)) for run in runs]
    return _pool_folds(runs, {key: judge.results["bounds"] for key, judge in judges.items()})


def _read(path, net):
    for name in ("config.json", "results.json"):
        if not os.path.isfile(path / name):  # Path.is_file raises for a name that is too long
            raise FaceDepthError(f"{path} has no {name}: give a finished run, or continue this one with `main`.")
    run = Run(path, config.read_run(path).to_dict(), files.read_json(path / "results.json"))
    try:  # everything that is read of it later
        if METHODS[run.method].net != net:
            raise FaceDepthError(f"{path} is a run of '{run.method}': give generators as RUN, verifiers as --verifier.")
        for name in ("seed", "dataset", "fingerprint", "step", "steps"):
            run.results[name]
        if net == "verifier":
            _pool_bounds([run.results["bounds"]])
            return run
        for found in (run.results[name] for name in MEASURED):
            int(found["n_frames"]), int(found["n_frames_without_depth"])
            faces = int(found.get("n_faces", 0))  # older results have no relief
            for part in ("all", "valid", "mm", *["relief"] * (faces > 0)):
                [float(value) for value in found[part].values()]
            for errors in found.get("standard_error", {}).values():
                [float(value or 0) for value in errors.values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FaceDepthError(
            f"{path / 'results.json'} is damaged or of another version ({error!r}): "
            "the same `main` command again writes it anew."
        ) from error
    return run


def _verify(run, judges):
    """Take the figures of a run's pairs from its verification.json or, the first time, from its data."""
    fingerprint = run.results["fingerprint"]
    if not (judge := judges.get((fingerprint, run.origin))):
        for (data, origin), other in judges.items():
            if data == fingerprint:
                raise FaceDepthError(
                    f"{run.path} counts depth from the {run.origin}, the verifier {other.path} from the {origin}: "
                    "give one of the run's depth_code.origin."
                )
        paths = ", ".join(str(judge.path) for judge in judges.values())
        raise FaceDepthError(f"{paths} and {run.path} are of different data: give the verifier of the run's data.")
    nets, file = {"verifier": judge.path, "generator": run.path}, run.path / "verification.json"
    try:
        weights = {net: files.sha256(path / f"{net}.safetensors") for net, path in nets.items()}
    except FileNotFoundError as error:
        raise FaceDepthError(
            f"{error.filename} does not exist; continue the run with `main`, which writes it at its end."
        ) from None
    known = files.read_json(file) if file.is_file() else None
    if isinstance(known, dict) and known.get("weights") == weights and "lists" in known:
        return known["lists"]
    if judge.config["depth_code"] != run.config["depth_code"]:
        raise FaceDepthError(f"{run.path} and {judge.path} differ in the meaning of a depth level (config.depth_code).")
    data = arrays.open(run.config["data"]["dir"])
    if data.fingerprint != fingerprint:
        raise FaceDepthError(
            f"{data.path} is not the data that {run.path} was trained on: prepare it as it was, with the run's config."
        )
    verifier, net = verification.load_verifier(judge.path), estimator.load(run.path)
    found = verification.verify_lists(verifier, verification.generated_depth(net.batch, data), data)
    files.write_json(file, {"weights": weights, "lists": found})
    return found


def _pool_folds(runs, judged):
    """Make one run of those that differ in data.options.fold alone, as if their test frames were measured in one."""
    groups = {}
    for run in runs:
        data = {key: value for key, value in run.config["data"].items() if key not in ("dir", "workers", "options")}
        options = {key: value for key, value in run.config["data"]["options"].items() if key != "fold"}
        same = [run.results["dataset"], data, options, run.lam, run.discriminator_pixels, run.seed, run.settings]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    pooled = []
    for group in groups.values():
        parts = sorted({run.results["fingerprint"] for run in group})
        numbers = {run.config["data"]["options"].get("fold") for run in group}
        if len(group) == 1 or min(len(parts), len(numbers)) < len(group):  # a run given twice is refused later
            pooled += group
            continue
        results = group[0].results | {name: _pool_figures(group, name) for name in MEASURED}
        results["fingerprint"] = hashlib.sha256("".join(parts).encode()).hexdigest()
        verified = None
        if judged:
            verified = _pool_lists([run.verification for run in group])
            origin = group[0].origin
            judged[results["fingerprint"], origin] = _pool_bounds([judged[part, origin] for part in parts])
        pooled.append(dataclasses.replace(group[0], results=results, verification=verified, folds=tuple(group)))
    return pooled, judged


def _pool_figures(folds, name):
    for run in folds:
        if "people" not in run.results[name]:
            raise FaceDepthError(
                f"{run.path} is a fold from before results kept the sums by which folds are pooled: "
                "report the folds one at a time, or train them again."
            )
    return metrics.figures(metrics.join_people([run.results[name]["people"] for run in folds]))


def _pool_bounds(folds):
    return {title: _pool_lists([fold[title] for fold in folds]) for title in verification.BOUNDS}


def _pool_lists(folds):
    return {name: _pool_verification([fold[name] for fold in folds]) for name in tables.LISTS}


def _pool_verification(folds):
    """Pool results of `verification.verify`, weighted by pairs; a figure that one fold lacks is None.

    The "auc" is the folds' mean, as scores of different verifiers cannot be ranked together. The replicates are sums
    too: each fold's people are drawn by themselves.
    """
    shares = np.array([fold["n"] for fold in folds]) / sum(fold["n"] for fold in folds)

    def pool(values):
        return None if None in values else np.tensordot(shares, values, 1).tolist()

    replicates = {name: pool([fold["replicates"][name] for fold in folds]) for name in ("accuracy", "auc")}

    def cell(angles, sequences):
        cells = [fold["cells"][angles][sequences] for fold in folds]
        pairs = sum(cell["n"] for cell in cells)
        right = sum(cell["n"] * (cell["accuracy"] or 0) for cell in cells)
        return {"accuracy": right / pairs if pairs else None, "n": pairs}

    return {
        **{name: sum(fold[name] for fold in folds) for name in ("n", "n_same", "n_frames", "n_people")},
        **{name: pool([fold[name] for fold in folds]) for name in ("accuracy", "auc", "loss")},
        "replicates": replicates,
        "standard_error": verification.standard_errors(replicates),
        "cells": {a: {s: cell(a, s) for s in row} for a, row in folds[0]["cells"].items()},
    }
