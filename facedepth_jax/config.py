"""Make, find, check and read configs: every number that a run uses, as ml_collections ConfigDicts."""

import dataclasses
import difflib
import math
import os
import pathlib
import re
import runpy

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from facedepth_jax import files
from facedepth_jax.data.arrays import META, Arrays, read_meta
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.methods import METHODS, Method
from facedepth_jax.nested import flatten

PACKAGED = pathlib.Path(__file__).parent / "configs"  # in a wheel; in a checkout they lie next to the package
CHECKOUT = pathlib.Path(__file__).parent.parent / "configs"
SHIPPED = pathlib.Path(__file__).parent / "weights"  # the run that comes with the package
_PATHS = ("data.dir", "data.raw_dir", "data.pairs_validation", "data.pairs_test")
_MINIMUM = {
    **{"seed": 0, "width": 2, "data.size": 16, "every.log": 1, "every.save": 1, "watchdog_sec": 1},
    **{"train.batch_size": 1, "train.steps": 1, "train.warmup_steps": 0, "train.learning_rate": 0},
    **{"train.clip_norm": 0, "train.weight_decay": 0, "train.b1": 0, "train.b2": 0, "train.average_decay": 0},
    **{"data.face_mm": 1, "data.workers": 0, "data.seed": 0},
    **{"depth_code.offset_mm": 0, "depth_code.step_mm": 0.001, "depth_code.none_level": 0},
    **{f"loss.{name}": 0 for method in METHODS.values() for name in method.loss},
}
_EXCLUSIVE_MAXIMUM = {
    **{"seed": 2**32, "watchdog_sec": 10**6, "data.size": 1025, "data.face_mm": 10_001, "data.seed": 2**63},
    **{"train.steps": 2**31, "train.b1": 1, "train.b2": 1, "train.average_decay": 1, "depth_code.none_level": 256},
}


def base(method: str) -> ml_collections.ConfigDict:
    """Make the paper's run for one method, without data. A config file starts from it and changes some values.

    Raises FaceDepthError for an unknown method.
    """
    config = ml_collections.ConfigDict()
    config.method = method
    config.seed = 1821
    config.width = 128  # feature maps of the first layer, the others follow; pix2pix takes half of it, cui a quarter
    config.dtype = "float32"  # of the computation; "bfloat16" on GPUs and TPUs. Parameters and losses stay float32
    config.init_from = ""  # a run whose weights to start from, or "shipped"
    config.loss = ml_collections.ConfigDict(_method(method).loss)

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 64
    config.train.steps = 100_000
    config.train.learning_rate = 2e-4
    config.train.b1 = 0.5
    config.train.b2 = 0.999
    config.train.schedule = "constant"  # or "cosine", down to a hundredth
    config.train.warmup_steps = 0
    config.train.weight_decay = 0.0
    config.train.clip_norm = 0.0  # the largest norm of a net's gradient; 0.0: not clipped
    config.train.average_decay = 0.0  # of the averaged weights, which are then evaluated and exported; 0.0: none
    config.train.augment = False  # see augment.py
    config.train.update(_method(method).train)

    config.data = ml_collections.ConfigDict()
    config.data.dir = ""  # prepared arrays
    config.data.dataset = ""  # if they are missing: prepared from this data set ...
    config.data.raw_dir = ""  # ... in this directory
    config.data.size = 96
    config.data.face_mm = 320.0
    config.data.workers = 0  # processes to prepare with; 0: the training's own
    config.data.seed = 0  # of the verification pairs
    config.data.pairs_validation = ""  # a list of pairs to take instead, see docs/preparing.md
    config.data.pairs_test = ""
    config.data.options = ml_collections.ConfigDict()  # of the data set, as in `prepare --help`

    code = DepthCode(origin=_method(method).origins[0])
    config.depth_code = ml_collections.ConfigDict(dataclasses.asdict(code))  # see there

    config.every = ml_collections.ConfigDict()  # in steps
    config.every.log = 50
    config.every.save = 1000  # a checkpoint, the validation figures, a picture
    config.watchdog_sec = 600  # without a step for so long, every thread's stack is printed
    config.lock()  # a misspelt key in a config file is an error
    config.data.options.unlock()
    return config


def _method(name: str) -> Method:
    if name not in METHODS:
        raise FaceDepthError(f"There is no method {name!r}: take one of {', '.join(METHODS)}.")
    return METHODS[name]


def find(name: str) -> tuple[pathlib.Path, str | None]:
    """Find a config file and the argument behind the colon: "configs/pandora.py:ae", or "pandora:ae" from anywhere.

    Raises FaceDepthError if there is none.
    """
    name, _, argument = os.path.expanduser(name).partition(":")
    candidates = [pathlib.Path(name)]
    if "/" not in name and not name.endswith(".py"):
        candidates += [PACKAGED / f"{name}.py", CHECKOUT / f"{name}.py"]
    for path in candidates:
        if os.path.isfile(path):
            return path.resolve(), argument or None
    known = sorted({path.stem for folder in (CHECKOUT, PACKAGED) for path in folder.glob("*.py")} - {"base"})
    raise FaceDepthError(f"There is no config file {name}; the project's own are {', '.join(known)}.")


def load(name: str, overrides=()) -> ml_collections.ConfigDict:
    """Read a config file, found as by `find`.

    Args:
      overrides: "train.steps=100", or a command line's arguments, as ml_collections reads them.

    Raises:
      FaceDepthError: the file makes no config, there is no such value, or it is of another type.
    """
    path, argument = find(name)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise FaceDepthError(f"The config {path} has no function get_config: see the others in configs/.")
        config = get_config(argument) if argument else get_config()
    except FaceDepthError:
        raise
    except Exception as error:  # the file is Python: it may raise anything
        raise FaceDepthError(f"The config {path} cannot be used: {_reason(error)}.") from error
    argv, given, known = [""], [], flatten(config.to_dict())
    for text in overrides:
        text = f"--config.{text}" if re.match(r"[a-z_.0-9]+=", text) else text
        key, _, value = text.partition("=")
        if key.startswith("--config."):
            key = key.removeprefix("--config.")
            if key not in known:
                near = ", ".join(difflib.get_close_matches(key, known)) or "one of " + ", ".join(known)
                raise FaceDepthError(f"The config {path} has no {key}: give {near}.")
            given.append(key)
            if type(known[key]) is int and re.fullmatch(r"\d+(\.\d+)?e\d{1,2}", value) and float(value).is_integer():
                text = f"--config.{key}={float(value):.0f}"  # 1e3, as it may be written for a float
        argv.append(text)
    parser = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=argv)
    try:
        rest = parser(argv)[1:]
    except flags.Error as error:
        raise FaceDepthError(f"A value of the config {path} cannot be used: {error}.") from None
    for key in ("init_from", *_PATHS):  # no shell puts the home there for ~
        if str(value := flatten(config.to_dict()).get(key)).startswith("~"):
            config.update_from_flattened_dict({key: os.path.expanduser(value)})
    _take_given_arrays(config, {key for key in given if key.startswith("data.")})
    if rest:
        raise FaceDepthError(f"Unexpected: {' '.join(rest)}; values of the config are given as --config.KEY=VALUE.")
    return config


def _take_given_arrays(config, given: set[str]):
    """Use existing arrays unchanged if the command line names only their directory.

    Raises FaceDepthError if their meta.json is damaged.
    """
    if "data.dir" not in given or given - {"data.dir", "data.size", "data.face_mm", "data.workers"}:
        return
    if ((path := pathlib.Path(config.data.dir)) / META).is_file():
        meta = read_meta(path)
        theirs = {"size": meta["size_px"], "face_mm": float(meta["crop"]["face_mm"])}
        config.data.update({name: value for name, value in theirs.items() if f"data.{name}" not in given})
        config.data.dataset = ""
        config.data.options = ml_collections.ConfigDict()


def _reason(error: Exception) -> str:
    """Return an error's message without the values of the whole config, which ml_collections adds."""
    return (
        f"{type(error).__name__}: {error}".split(" Other fields")[0]
        .splitlines()[0]
        .replace("'Key ", "Key ")
        .rstrip(".")
    )


def check(config):
    """Raise FaceDepthError for a value that no run can be made with."""
    values = flatten(config.to_dict())
    free = "loss", "data.options"  # looked at below, and by the data set
    known = flatten(base(values.get("method")).to_dict())
    for name in sorted(known.keys() ^ values.keys()):  # a config file may make its own ConfigDict, or unlock it
        if not name.startswith(free):
            near = difflib.get_close_matches(name, known, 1) if name in values else []
            fault = f"has {name}, which is no value of a run" if name in values else f"lacks {name}"
            raise FaceDepthError(f"The config {fault}{''.join(f': do you mean {other}?' for other in near) or '.'}")
    for name, value in values.items():
        least, below = _MINIMUM.get(name, -math.inf), _EXCLUSIVE_MAXIMUM.get(name, math.inf)
        if isinstance(value, int | float) and not math.isfinite(value):
            raise FaceDepthError(f"{name} is {value}: it must be finite.")
        if isinstance(value, int | float) and not least <= value < below:
            limits = [f"at least {least}"] * (name in _MINIMUM) + [f"below {below}"] * (name in _EXCLUSIVE_MAXIMUM)
            raise FaceDepthError(f"{name} is {value}: it must be {' and '.join(limits)}.")
    if set(config.loss) != set(loss := _method(config.method).loss):
        raise FaceDepthError(
            f"The loss has the values {list(config.loss)}, the method {config.method!r} takes {list(loss)}: "
            f"choose the method by --config=CONFIG:{config.method}."
        )
    if (pixels := config.loss.get("discriminator_pixels", "all")) not in ("learnt", "all", "valid"):
        raise FaceDepthError(f"loss.discriminator_pixels is {pixels!r}: take learnt, all or valid.")
    origins = METHODS[config.method].origins
    if config.depth_code.origin not in origins:
        raise FaceDepthError(
            f"depth_code.origin is {config.depth_code.origin!r}: {config.method!r} takes {' or '.join(origins)}."
        )
    if config.train.augment and config.method == "verifier":
        raise FaceDepthError("train.augment is for photographs: the verifier has its own, leave it False.")
    if config.dtype not in ("float32", "bfloat16"):
        raise FaceDepthError(f"dtype is {config.dtype!r}: take float32 or bfloat16.")
    if config.train.schedule not in ("constant", "cosine"):
        raise FaceDepthError(f"train.schedule is {config.train.schedule!r}: take constant or cosine.")
    if config.train.schedule == "cosine" and config.train.warmup_steps >= config.train.steps:
        raise FaceDepthError(f"train.warmup_steps is {config.train.warmup_steps}: give fewer than train.steps.")
    if config.data.size % 16:
        raise FaceDepthError(f"data.size is {config.data.size}: the nets halve it four times, take a multiple of 16.")


def check_crops(config, data: Arrays):
    """Raise FaceDepthError unless prepared arrays hold crops as the config has them, and D where its code needs it."""
    size, face_mm = data.gray.shape[1], data.meta["crop"]["face_mm"]
    if (size, face_mm) != (config.data.size, config.data.face_mm):
        raise FaceDepthError(
            f"{data.path} holds crops of {size} px and {face_mm:g} mm, data.size is {config.data.size} "
            f"and data.face_mm {config.data.face_mm:g}: prepare it with the same."
        )
    some = data.depth_mm[np.linspace(0, len(data) - 1, min(100, len(data))).astype(int)]
    low, high = depth_code(config).range_mm
    if config.depth_code.origin == "camera" and not ((low <= some) & (some <= high)).any():
        raise FaceDepthError(
            f"{data.path}: no depth is between {low:g} and {high:g} mm, so nothing can be learnt with "
            "depth_code.origin=camera: prepare it with its unit of depth (a folder's --depth_unit_mm), "
            "or change depth_code."
        )
    distance_mm = data.frames["distance_mm"]
    bad = data.frames["frame"][~((distance_mm > 0) & (distance_mm < math.inf))]  # NaN too
    if (config.depth_code.origin == "head" or config.train.augment) and len(bad):
        raise FaceDepthError(
            f"{data.path / 'frames.csv'} has no distance_mm above 0 for {len(bad)} of {len(data)} frames, the first is "
            f"{bad[0]}: depth_code.origin=head and train.augment must know it; prepare the data again, or do without."
        )


def depth_code(config) -> DepthCode:
    """Make the config's DepthCode."""
    return DepthCode(**config.depth_code)


def with_absolute_paths(config) -> ml_collections.ConfigDict:
    """Copy a config with its paths made absolute: a run is read from other directories later."""
    values, config = flatten(config.to_dict()), config.copy_and_resolve_references()
    if values["init_from"]:
        config.init_from = str(find_run(values["init_from"]).absolute())
    for key in _PATHS:
        if values[key] and "://" not in values[key]:
            config.update_from_flattened_dict({key: str(pathlib.Path(values[key]).absolute())})
    return config


def find_run(run) -> pathlib.Path:
    """Return the directory of a run; "shipped" is the net in the package."""
    return SHIPPED if str(run) == "shipped" else pathlib.Path(run)


def identity(config, data: str | None) -> dict:
    """Collect what must not change while a run goes on: all that decides its numbers, except how long it goes.

    Args:
      data: says which data it is, as the arrays' fingerprint.
    """
    values = config.to_dict()
    for name in ("watchdog_sec", "init_from"):  # the weights of the latter are in the checkpoint
        del values[name]
    if config.train.schedule == "constant":  # the cosine's length decides its rates
        del values["train"]["steps"]
    # `every.save` decides which weights are kept.
    return values | {"data": data, "every": {"save": config.every.save}}


def read_run(run: pathlib.Path) -> ml_collections.ConfigDict:
    """Read the config of a run directory, also of a run from before the present keys.

    Raises FaceDepthError if there is no run or its config.json cannot be used.
    """
    path = pathlib.Path(run) / "config.json"
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise FaceDepthError(f"There is no run in {run}: give the --workdir of a training.")
    values = files.read_json(path)
    try:
        config = base(values["method"])
        if "code" in values:
            values = _upgrade(values)
        if values["method"] == "relief":  # a run from before these terms
            values["loss"] = {"normals_weight": 0.0, "far_weight": 1.0} | values["loss"]
        config.update(values)
        check(config)
    except (AttributeError, KeyError, TypeError, ValueError, FaceDepthError) as error:
        raise FaceDepthError(f"{path} is damaged or of another version ({_reason(error)}): train again.") from error
    return config


def _upgrade(values: dict) -> dict:
    """Give a config from before version 0.1 today's keys; what it says stays the same."""
    values = dict(values)
    code, every, net = dict(values.pop("code")), dict(values["every"]), values.pop("net")
    if code.pop("half_range") != 127.5 or not net["dropout_at_test"]:
        raise ValueError("code.half_range or net.dropout_at_test is not the default, which is not supported any more")
    values["watchdog_sec"] = every.pop("stuck_sec")
    del every["evaluate"]
    loss = {name: values["loss"][name] for name in METHODS[values["method"]].loss if name in values["loss"]}
    return values | {"depth_code": code, "every": every, "loss": loss}
