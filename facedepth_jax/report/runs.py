"""Finished runs as the report wants them: read and checked, judged by a verifier, folds pooled."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from facedepth_jax import files, folds
from facedepth_jax.data import arrays
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.metrics import METRICS
from facedepth_jax.runs import load_verifier, verify_generated

ORDER = ("cgan", "ae", "pix2pix", "cui")  # of the columns, as in the paper


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, resolved config, results.json, and what a verifier says of its depth maps."""

    path: Path
    config: dict
    results: dict
    verification: dict | None = None
    folds: tuple["Run", ...] = ()  # that it was pooled from

    @property
    def method(self) -> str:
        return self.results["method"]

    @property
    def seed(self) -> int:
        return self.results["seed"]

    @property
    def lam(self) -> float | None:
        """Weight of the reconstruction in Eq. 5; the methods without an adversary have none."""
        return self.config["loss"]["lam"] if self.method == "cgan" else None

    @property
    def settings(self) -> dict:
        """What decides the figures beside method, lambda and seed; the data has a fingerprint of its own."""
        loss = {key: value for key, value in self.config["loss"].items() if key != "lam"}
        return {k: value for k, value in self.config.items() if k not in ("seed", "data", "every")} | {"loss": loss}

    @property
    def steps(self) -> list[int]:
        """After which the weights were kept, of every fold."""
        return [run.results["step"] for run in self.folds or (self,)]


def read(
    paths: Sequence[Path], verifiers: Sequence[Path], between: Callable[[], None]
) -> tuple[list[Run], dict[str, dict]]:
    """Finished runs, folds pooled, with what the verifiers of their data say of them.

    Args:
      verifiers: none, or one for each data set (or fold) of the runs.
      between: called before each batch of depth maps that have not been judged yet; may raise.

    Returns:
      The runs, and fingerprint of the data -> the verifier's own figures ("test", "baseline_mean_map").

    Raises:
      FaceDepthError: a run or a verifier cannot be used, or two verifiers are of the same data.
    """
    runs = [_read_run(path) for path in paths]
    judges = {}
    for path in verifiers:
        judge = _read_verifier(path)
        other, _ = judges.setdefault(judge["fingerprint"], (path, judge))
        if other != path:
            raise FaceDepthError(f"{other} and {path} are verifiers of the same data: give one of them.")
    if judges:
        runs = [dataclasses.replace(run, verification=_verify_run(run, judges, between)) for run in runs]
    return _pool_folds(runs, judges)


def _read_run(path: Path) -> Run:
    """Reads a run directory.

    Raises:
      FaceDepthError: no directory, no results yet, damaged files.
    """
    if not path.is_dir():
        raise FaceDepthError(f"{path} does not exist; give the directory of a finished training run.")
    for name in ("config.json", "results.json"):
        if not (path / name).is_file():
            raise FaceDepthError(
                f"{path} has no {name}: it is no run, or one that has not ended; continue it with `main`."
            )
    run = Run(path, files.read_json(path / "config.json"), files.read_json(path / "results.json"))
    if isinstance(run.results, dict) and run.results.get("method") == "verifier":
        raise FaceDepthError(f"{path} is a verifier's run: give it as --verifier.")
    try:
        ORDER.index(run.method)
        (
            run.method,
            run.seed,
            run.lam,
            run.config["code"],
            run.results["dataset"],
            run.results["fingerprint"],
            run.results["step"],
            run.results["steps"],
        )
        for result in (run.results["test"], run.results["validation"], run.results["baseline_mean_map"]):
            for name in ("n_frames", "n_frames_without_depth", "n_pixels", "n_pixels_valid", "n_pixels_mm"):
                int(result[name])
            for column in ("all", "valid"):
                for metric in METRICS:
                    float(result[column][metric.key])
            float(result["mm"]["mae_mm"]), float(result["mm"]["rmse_mm"])
    except (KeyError, TypeError, ValueError) as error:
        raise FaceDepthError(
            f"{path} was written by another version or is damaged (results.json or config.json: {error!r}); "
            "evaluate the run again."
        ) from error
    return run


def _verify_run(run: Run, judges: dict[str, tuple[Path, dict]], between: Callable[[], None]) -> dict:
    """`verification.verify` of a run's test pairs, from its verification.json or, the first time, from its data.

    Args:
      judges: fingerprint of the data -> the verifier's run and its results.json.

    Raises:
      FaceDepthError: a run on other data than the verifiers', or its data are not where its config says.
    """
    if run.results["fingerprint"] not in judges:
        paths = ", ".join(str(path) for path, _ in judges.values())
        raise FaceDepthError(f"{paths} and {run.path} are of different data: give the verifier of the run's data.")
    verifier_path, _ = judges[run.results["fingerprint"]]
    nets = {"verifier": verifier_path / "verifier.safetensors", "generator": run.path / "generator.safetensors"}
    for path in nets.values():
        if not path.is_file():
            raise FaceDepthError(f"{path} does not exist; continue the run with `main`, which writes it at its end.")
    weights = {net: files.sha256(path) for net, path in nets.items()}
    file = run.path / "verification.json"
    if file.is_file():
        known = files.read_json(file)
        if isinstance(known, dict) and known.get("weights") == weights and "test" in known:
            return known["test"]
    data = arrays.open(run.config["data"]["dir"])
    if data.fingerprint != run.results["fingerprint"]:
        raise FaceDepthError(
            f"{data.path} is not the data that {run.path} was trained on: prepare it as it was, with the run's config."
        )
    found = verify_generated(load_verifier(verifier_path), run.path, data, between)
    files.write_json(file, {"weights": weights, "test": found})
    return found


def _read_verifier(path: Path) -> dict:
    """results.json of a verifier's run."""
    if not (path / "results.json").is_file():
        raise FaceDepthError(f"{path} is no finished run: give the --workdir of a verifier's training.")
    results = files.read_json(path / "results.json")
    try:
        if results["method"] != "verifier":
            raise FaceDepthError(f"{path} is a run of '{results['method']}': --verifier wants a verifier's.")
        results["fingerprint"]
        for found in (results["test"], results["baseline_mean_map"]):
            folds.pool_verification([found])  # all that is asked of it later
    except (KeyError, TypeError) as error:
        raise FaceDepthError(
            f"{path / 'results.json'} is damaged or of another version: train the verifier again."
        ) from error
    return results


def _pool_folds(runs: Sequence[Run], judges: dict[str, tuple[Path, dict]]) -> tuple[list[Run], dict[str, dict]]:
    """Runs that differ in data.options.fold alone become one, all their test frames together.

    Args:
      runs, judges: as read, each of its own data.

    Returns:
      The runs, and fingerprint -> the verifier's figures ("test", "baseline_mean_map"), pooled like them.
    """
    groups = {}
    for run in runs:
        data = {key: value for key, value in run.config["data"].items() if key != "dir"}
        options = {key: value for key, value in data.get("options", {}).items() if key != "fold"}
        same = [run.results["dataset"], data | {"options": options}, run.lam, run.seed, run.settings]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    pooled, judged = [], {fingerprint: judge for fingerprint, (_, judge) in judges.items()}
    for group in groups.values():
        parts = sorted({run.results["fingerprint"] for run in group})
        if len(parts) == 1 or len(parts) < len(group):  # nothing to pool, or a run given twice: said later
            pooled += group
            continue
        fingerprint = hashlib.sha256("".join(parts).encode()).hexdigest()
        results = group[0].results | {"fingerprint": fingerprint}
        for name in ("test", "validation", "baseline_mean_map"):
            results[name] = folds.pool_figures([run.results[name] for run in group])
        found = None
        if judges:
            found = folds.pool_verification([run.verification for run in group])
            those = [judges[part][1] for part in parts]
            judged[fingerprint] = {
                name: folds.pool_verification([judge[name] for judge in those])
                for name in ("test", "baseline_mean_map")
            }
        results["n_frames"] = results["test"]["n_frames"]
        pooled.append(dataclasses.replace(group[0], results=results, verification=found, folds=tuple(group)))
    return pooled, judged
