"""Make synthetic RGB-D faces: subjects x five sequences like Pandora's."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np

from facedepth_jax.data.frames import Frame, FrameInfo, Source, option
from facedepth_jax.data.synthetic.picture import fragment_capacity, render_batch
from facedepth_jax.data.synthetic.scene import SEQUENCES, Camera, Scene, frame_scene
from facedepth_jax.errors import FaceDepthError

VERSION = 6  # of the faces: raise it with every change that alters a frame, or old arrays pass for new ones
TEST_SEED = 20180905  # of `test_subjects`
BATCH_FRAMES = 4  # rendered at once, at fixed positions of the index: more make buffers that malloc does not keep
# Depth cameras: focal length, principal point, size in pixels; of a typical Kinect v2, and of Biwi's Kinect v1.
SENSORS = {
    "kinect_v2": ((365.456, 365.456), (254.878, 205.395), (424, 512)),
    "kinect_v1": ((575.816, 575.816), (320.0, 240.0), (480, 640)),
    "none": ((365.456, 365.456), (254.878, 205.395), (424, 512)),  # exact depth through the v2's lens
}


def window(scene: Scene, sensor: str, image_size: int) -> Camera:
    """Return a square window of the sensor around the head, in whole pixels: a cut-out of the full picture."""
    focal, centre, _ = SENSORS[sensor]
    focal, centre = np.array(focal), np.array(centre)
    head = focal * scene.head_mm[:2] / scene.head_mm[2] + centre
    first = np.round(head - (image_size - 1) / 2)
    return Camera(focal.astype(np.float32), (centre - first).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class SyntheticSource(Source):
    """The faces as a `frames.Source`.

    Every frame is a function of (seed, subject, sequence, frame number) and the settings: the same on every run, in any
    cut of the index. On another kind of device the last bits may differ.
    """

    subjects: int = option(
        200, "Number of people: 80 % train, 10 % validation and test, at least one each from three on."
    )
    test_subjects: int = option(
        0, f"Test on so many people of the seed {TEST_SEED}, the same for all `subjects`; 0: on a tenth of its own."
    )
    frames_per_sequence: int = option(10, "Of each person's five sequences.")
    image_size: int = option(192, "Height and width in pixels of the window around the head.")
    sensor: str = option("kinect_v2", f"One of {', '.join(SENSORS)}; none: exact depth, gray without the stripe.")
    misregistration: float = option(0.0, "Largest shift of gray against depth, pixels, alike for all of a person.")
    seed: int = option(0, "Of everything but the `test_subjects`.")
    name = "synthetic"

    def __post_init__(self):
        if self.sensor not in SENSORS:
            raise FaceDepthError(f"synthetic faces: no sensor {self.sensor!r}; choose one of {', '.join(SENSORS)}.")
        for what, least in (("subjects", 1), ("test_subjects", 0), ("frames_per_sequence", 1), ("image_size", 32)):
            if getattr(self, what) < least:
                raise FaceDepthError(f"synthetic faces: {what} is {getattr(self, what)}, it must be at least {least}.")
        if not 0 <= self.misregistration < self.image_size / 2 or (self.sensor == "none" and self.misregistration):
            raise FaceDepthError(
                f"synthetic faces: misregistration is {self.misregistration} pixels, it must be at least 0, less than "
                "half the image, and 0 for the sensor none."
            )
        if not 0 <= self.seed < 2**31:
            raise FaceDepthError(f"synthetic faces: the seed is {self.seed}, it must be between 0 and 2147483647.")
        if self.test_subjects and self.seed == TEST_SEED:
            raise FaceDepthError(f"synthetic faces: {TEST_SEED} is the seed of the test_subjects; choose another one.")

    @property
    def settings(self) -> dict:
        settings = {"version": VERSION} | dataclasses.asdict(self)
        if not self.test_subjects:  # arrays from before this option keep their settings
            del settings["test_subjects"]
        return settings

    @functools.cached_property
    def _people(self) -> list[tuple[int, int, str, str]]:
        """List the people: seed, number, name, split."""
        split = self.splits()
        own = [(self.seed, number, f"s{number:04d}", split[number]) for number in range(1, self.subjects + 1)]
        if self.test_subjects:
            own = [person for person in own if person[3] != "test"]
        return own + [(TEST_SEED, number, f"t{number:04d}", "test") for number in range(1, self.test_subjects + 1)]

    def splits(self) -> dict[int, str]:
        """Return {number of a person: split}, shuffled by the seed, before `test_subjects`."""
        order = np.random.default_rng([self.seed, 0]).permutation(self.subjects) + 1
        held = max(1, self.subjects // 10) if self.subjects >= 3 else 0
        names = ["test"] * held + ["validation"] * held + ["train"] * (self.subjects - 2 * held)
        return dict(zip(order.tolist(), names, strict=True))

    def __len__(self) -> int:
        return len(self._people) * SEQUENCES * self.frames_per_sequence

    def _place(self, position):
        """Return the person, sequence and frame of an entry: people, `test_subjects` last, sequences 1..5, frames."""
        sequence, frame = divmod(position, self.frames_per_sequence)
        person, sequence = divmod(sequence, SEQUENCES)
        return self._people[person], sequence + 1, frame

    def _info(self, position):
        (_, _, name, split), sequence, frame = self._place(position)
        return FrameInfo(f"{name}_{sequence}_{frame:04d}", name, sequence, split)

    def scene(self, position: int) -> Scene:
        """Draw the scene of entry `position` of the index."""
        (seed, number, *_), sequence, frame = self._place(position)
        return frame_scene(seed, number, sequence, frame, self.frames_per_sequence)

    def load(self, start: int, stop: int) -> Iterator[Frame]:
        """Yield a Frame for each entry of `index()[start:stop]`.

        Raises FaceDepthError if a picture does not fit the rasteriser's buffer.
        """
        stop = min(stop, len(self))
        for first in range(start - start % BATCH_FRAMES, stop, BATCH_FRAMES):
            yield from self._batch(first, max(start, first), min(stop, first + BATCH_FRAMES))

    def _batch(self, first, start, stop):
        # The last batch is padded.
        scenes = [self.scene(min(p, len(self) - 1)) for p in range(first, first + BATCH_FRAMES)]
        cameras = [window(s, self.sensor, self.image_size) for s in scenes]
        stack = functools.partial(jax.tree.map, lambda *leaves: np.stack(leaves))
        size = (self.image_size, self.image_size)
        capacity = fragment_capacity(SENSORS[self.sensor][0][0], size)
        for _ in range(3):  # a picture does not depend on the capacity, as long as it is enough
            with jax.numpy_rank_promotion("allow"):  # whatever the user's setting: the code broadcasts as NumPy does
                rendered = render_batch(
                    stack(*scenes), stack(*cameras), self.misregistration, size, self.sensor, capacity
                )
            gray, depth, overflow = jax.device_get(rendered)
            if not overflow.any():
                break
            capacity *= 2
        for position in range(start, stop):
            i, info = position - first, self._info(position)
            if overflow[i]:
                raise FaceDepthError(
                    f"synthetic faces: frame {info.frame} does not fit the rasteriser's buffer; "
                    "choose another seed or image_size."
                )
            x, y = (scenes[i].head_mm[:2] / scenes[i].head_mm[2] * cameras[i].focal_px + cameras[i].center_px).tolist()
            yaw, pitch, roll = scenes[i].angles_deg.tolist()
            focal, head_mm = tuple(cameras[i].focal_px.tolist()), tuple(scenes[i].head_mm.tolist())
            yield Frame(info, gray[i], depth[i], (x, y), focal, yaw=yaw, pitch=pitch, roll=roll, head_mm=head_mm)
