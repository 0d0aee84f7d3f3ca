"""What a config stands for, and what is in the directory of a finished run."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from facedepth_jax import files, steps, verification
from facedepth_jax.checkpoint import load_weights
from facedepth_jax.depth_code import DepthCode, image_from_gray
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import Net, NetState, adam, forward, init_net
from facedepth_jax.verification import Verifier

METHODS = steps.METHODS | {"verifier": steps.VERIFIER}


def check_values(config):
    """Raises FaceDepthError for a number that no run can be made with."""
    every = config.every
    for name, value, least in (
        ("seed", config.seed, 0),
        ("width", config.width, 2),
        ("train.steps", config.train.steps, 1),
        ("data.size", config.data.size, 16),
        ("every.log", every.log, 1),
        ("every.save", every.save, 1),
        ("every.evaluate", every.evaluate, 1),
        ("every.stuck_sec", every.stuck_sec, 1),
    ):
        if value < least:
            raise FaceDepthError(f"{name} is {value}: it must be at least {least}.")


def build(config: ml_collections.ConfigDict, subjects: int) -> tuple[steps.Method, dict[str, Net]]:
    """The row of METHODS and its nets with their optimisers, for so many training people.

    Raises FaceDepthError for values that no net can be made with.
    """
    if config.method not in METHODS:
        raise FaceDepthError(f"There is no method {config.method!r}: take one of {', '.join(METHODS)}.")
    if config.dtype not in ("float32", "bfloat16"):
        raise FaceDepthError(f"dtype is {config.dtype!r}: take float32 or bfloat16.")
    if config.data.size % 16:
        raise FaceDepthError(f"data.size is {config.data.size}: the nets halve it four times, take a multiple of 16.")
    method = METHODS[config.method]
    net_args = {name: config.net[name] for name in method.net_args}
    modules = method.modules(config.width, jnp.dtype(config.dtype), subjects, **net_args)
    train = config.train
    return method, {
        name: Net(module, adam(train.learning_rate, train.b1, train.b2)) for name, module in modules.items()
    }


def code_of(config) -> DepthCode:
    """What a level of depth stands for."""
    return DepthCode(**config.code.to_dict())


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained generator and what is needed to read its images.

    Attributes:
      predict: gray uint8 (B, S, S) -> image float32 (B, S, S, 1) in [-1, 1], jitted.
      size: S, pixels.
      code: what a level stands for.
      face_mm: width of the window that a face must be cropped to, R of Eq. 6.
    """

    predict: Callable
    size: int
    code: DepthCode
    face_mm: float


def load_generator(run_dir) -> Generator:
    """The generator of a run from its `config.json` and `generator.safetensors`. Raises FaceDepthError without them."""
    config, module, net_state = _load(run_dir, "generator")
    predict = jax.jit(lambda gray: forward(module, net_state, image_from_gray(gray)[..., None]))
    return Generator(predict, config.data.size, code_of(config), config.data.face_mm)


def load_verifier(run_dir) -> Verifier:
    """The verifier of a run from its `config.json` and `verifier.safetensors`. Raises FaceDepthError without them."""
    config, module, net_state = _load(run_dir, "verifier")
    return Verifier(module, net_state, code_of(config))


def verify_generated(verifier: Verifier, run_dir, data, between: Callable[[], None] = lambda: None) -> dict:
    """A run's generated depth on the test pairs, both images of a pair generated; as `verification.verify` gives it.
    `between` is called before each batch.

    Raises FaceDepthError for a run without a generator, or whose images do not suit the verifier or the data.
    """
    generator = load_generator(run_dir)
    if generator.code != verifier.code:
        raise FaceDepthError(f"{run_dir} and the verifier differ in what a level of depth stands for (config.code).")
    if generator.size != data.gray.shape[1]:
        raise FaceDepthError(f"{run_dir} takes images of {generator.size} px, {data.path} has {data.gray.shape[1]}.")
    depth_levels = verification.generated_depth(generator.predict, data, verifier.code)
    return verification.verify(verifier, depth_levels, data, "test", between)


def _load(run_dir, name):
    """Config, module and NetState of a run's net, the one that it is for."""
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / "config.json").is_file():
        raise FaceDepthError(f"There is no run in {run_dir}: give the --workdir of a training.")
    values = files.read_json(run_dir / "config.json")
    try:
        config = ml_collections.ConfigDict(values)
        nets = build(config, subjects=1)[1]
        if name not in nets:
            raise FaceDepthError(f"{run_dir} is a run of '{config.method}', which has no {name}: give another.")
        size, _, _ = config.data.size, code_of(config), config.data.face_mm
        like = jax.eval_shape(lambda: init_net(nets[name], jax.random.key(0), size))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FaceDepthError(f"{run_dir / 'config.json'} is damaged or of another version: train again.") from error
    variables = load_weights(run_dir / f"{name}.safetensors", {"params": like.params, "batch_stats": like.batch_stats})
    return config, nets[name].module, NetState(variables["params"], variables["batch_stats"], None)
