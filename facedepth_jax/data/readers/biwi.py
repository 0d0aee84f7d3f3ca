"""Read the Biwi Kinect Head Pose Database (Fanelli et al., IJCV 2013) as ETH gives it out; docs/biwi.md has the terms.

hpdb/01 .. hpdb/24 (in a copy on the web faces_0/01 ..), each with
  frame_00003_rgb.png     colour, 8 bits
  frame_00003_depth.bin   depth, see biwi_files.decode_depth
  frame_00003_pose.txt    the head's rotation, three rows, and its centre in mm in the depth camera's frame
  rgb.cal, depth.cal      the cameras, see biwi_files; X_rgb = R X_depth + T with R and T of rgb.cal
head_pose_masks/01 ..     in the same directory, optional: frame_00003_depth_mask.png, not 0 on the head
"""

import dataclasses
import hashlib
import math
import re
from pathlib import Path

import numpy as np

from facedepth_jax.data import images
from facedepth_jax.data.frames import MAX_FOCAL_PX, Fault, Frame, FrameInfo, Source, Unusable, counted, option
from facedepth_jax.data.readers import biwi_files, registration
from facedepth_jax.data.readers.raw import find_copies, list_files, list_folders, split_of
from facedepth_jax.errors import FaceDepthError

# By sequence; all others train. The test sequences are those of the authors' group, the validation is our choice.
SPLITS = {"test": (1, 10, 11), "validation": (12, 13)}
SEQUENCES = 24
TEST_FRAMES = {1: 498, 10: 726, 11: 572}
SAME_PERSON = {15: 3, 18: 5, 21: 2, 22: 7}  # recorded twice: one person each

REGISTER = ("depth_to_gray", "gray_to_depth")
LAYOUTS = ("hpdb", "faces_0")
MASKS = "head_pose_masks"
FILES = ("pose.txt", "depth.bin", "rgb.png")  # of each frame
_FRAME_FILE = re.compile(f"frame_([0-9]{{5}})_({'|'.join(map(re.escape, FILES))})")

_LAYOUT_TEXT = (
    "the layout is hpdb/01 .. hpdb/24 (or faces_0/01 ..) with frame_00003_rgb.png, ..._depth.bin, ..._pose.txt, ..., "
    "rgb.cal and depth.cal in each; --raw is the folder that holds hpdb, or hpdb itself"
)


@dataclasses.dataclass
class BiwiSource(Source):
    """The database as a `frames.Source` of registered pairs, by sequence and number.

    All text files are checked at once, images when loaded. The subject is the person (sequence 15 shows subject "03"
    again); `sequence` is 0, for Biwi's recordings are not Pandora's S1..S5. Angles are those of the binary annotation:
    R = Rz Ry Rx, pitch = rx, yaw = ry, roll = rz. The directory is the one that holds `hpdb` or `faces_0`, or one of
    those.

    Raises FaceDepthError if an option makes no sense, if there is no sequence, or one twice, if masks are wanted but
    not there, or if a symbolic link leads out of `raw`.
    """

    raw: str
    register: str = option(
        "depth_to_gray",
        '"depth_to_gray" carries the depth over to the colour camera and leaves the gray image as it was taken; '
        '"gray_to_depth" samples gray where each depth pixel is seen and leaves the depth image.',
    )
    focal: float = option(
        370.0,
        "Focal length in pixels for Eq. 6, by default the paper's; 0 takes the calibration's of the camera that the "
        "pair is registered to.",
    )
    mask: bool = option(False, "Take away the depth outside of the head masks that come with the database.")

    name = "biwi"
    expected = f"20 people in {SEQUENCES} sequences, some 15,700 frames; test sequences " + ", ".join(
        f"{number:02d} with {count} frames" for number, count in TEST_FRAMES.items()
    )

    def __post_init__(self):
        raw, self.focal, self.mask = Path(self.raw), float(self.focal), bool(self.mask)
        if self.register not in REGISTER:
            raise FaceDepthError(f"register is '{self.register}', not one of {', '.join(REGISTER)}")
        if self.focal and not 1 <= self.focal <= MAX_FOCAL_PX:
            raise FaceDepthError(f"focal is {self.focal}, not 1 to {MAX_FOCAL_PX} pixels or 0 (the calibration's)")
        folders, self._notes = _find_sequences(raw)
        self._masks = _find_masks(raw) if self.mask else None
        for folder, root in [(f, raw) for f in folders.values()] + [(self._masks, self._masks)] * self.mask:
            images.check_links(folder, root)
        names = {number: list_files(folder) for number, folder in folders.items()}
        frames = {number: sorted({m[1] for m in map(_FRAME_FILE.fullmatch, names[number]) if m}) for number in names}
        poses = {
            number: {frame: biwi_files.read_text(folder / f"frame_{frame}_pose.txt") for frame in frames[number]}
            for number, folder in folders.items()
        }
        copies = find_copies({number: set(texts.values()) - {None} for number, texts in poses.items()}, _person)
        self._frames, self._faults, self._folders, self._cameras = [], {}, {}, {}
        parsed, digest = [], hashlib.sha256()
        for number, folder in folders.items():
            if not frames[number]:
                self._notes.append(f"{folder} holds no frame")
                continue
            self._folders[number] = folder
            calibrations = [biwi_files.read_text(folder / name) for name in biwi_files.CALIBRATIONS]
            masks = list_files(self._masks / f"{number:02d}") if self.mask else ()
            fault = None
            try:
                if number in copies:
                    original, common = copies[number]
                    raise Unusable(f"copy of sequence {original:02d}", f"{common} poses are the same to the byte")
                self._cameras[number] = biwi_files.parse_cameras(folder.name, calibrations)
            except Unusable as error:
                fault = error.args
            for frame, text in poses[number].items():
                missing = [name for name in FILES if f"frame_{frame}_{name}" not in names[number]]
                masked = f"frame_{frame}_depth_mask.png" in masks
                pose = [math.nan] * 12
                try:
                    if fault:
                        raise Unusable(*fault)
                    if missing:
                        paths = ", ".join(f"{folder.name}/frame_{frame}_{name}" for name in missing)
                        raise Unusable(f"{missing[0]} is missing", paths)
                    pose = biwi_files.parse_pose(text)
                    if self.mask and not masked:
                        raise Unusable("mask is missing", f"{MASKS}/{number:02d}")
                except Unusable as error:
                    self._faults[len(self)] = error.args
                self._frames.append((number, frame))
                parsed.append(pose)
                digest.update(f"{number:02d}_{frame} {missing} {masked}\n".encode() + (text or b""))
            digest.update(b"".join(text or b"" for text in calibrations))
        if not self._frames:
            raise FaceDepthError(f"{self.raw} holds no frame of Biwi; {_LAYOUT_TEXT}")
        parsed = np.array(parsed)
        self._angles_deg, self._head_mm = biwi_files.angles_deg(parsed[:, :9].reshape(-1, 3, 3)), parsed[:, 9:]
        options = {"register": self.register, "focal": self.focal, "mask": self.mask}
        self.settings = {"annotations_sha256": digest.hexdigest()} | options

    def __len__(self) -> int:
        return len(self._frames)

    def _info(self, row: int) -> FrameInfo:
        number, frame = self._frames[row]
        person = _person(number)
        return FrameInfo(f"{number:02d}_{frame}", f"{person:02d}", 0, split_of(person, SPLITS))

    def _fault(self, row: int) -> Fault | None:
        return self._faults.get(row)

    def notes(self) -> list[str]:
        """Name missing and foreign sequences and test sequences of another length than the paper's.

        Also how wide the window is, where Eq. 6 takes another focal length than the camera has.
        """
        notes = list(self._notes)
        missing = [f"{number:02d}" for number in range(1, SEQUENCES + 1) if number not in self._folders]
        if missing:
            notes.append(f"{len(missing)} of {SEQUENCES} sequences are missing: {', '.join(missing)}")
        for number, want in TEST_FRAMES.items():
            count = sum(number == of for of, _ in self._frames)
            if count not in (0, want):
                notes.append(f"test sequence {number:02d} has {counted(count, 'frame')}, not {want} as published")
        which = self.register == "depth_to_gray"  # the second camera is the colour camera
        own = np.mean([cameras[which].focal_px for cameras in self._cameras.values()] or [[self.focal]])
        if self.focal and abs(self.focal / own - 1) > 0.01:
            notes.append(
                f"focal={self.focal:g} where the calibration says {own:.1f} px: "
                f"the window shows {self.focal / own:.0%} of face_mm, see docs/biwi.md"
            )
        return notes

    def _read(self, row: int) -> Frame:
        number, frame = self._frames[row]
        depth_camera, gray_camera = self._cameras[number]
        folder = self._folders[number]
        depth_mm = biwi_files.read_depth(folder / f"frame_{frame}_depth.bin", depth_camera.size)
        gray = images.read_gray(folder, f"frame_{frame}_rgb.png")
        images.check_size("gray image", gray.shape[::-1], gray_camera.size)
        if self.mask:
            mask = images.read_gray(self._masks, f"{number:02d}/frame_{frame}_depth_mask.png", "mask")
            images.check_size("mask", mask.shape[::-1], depth_camera.size)
            depth_mm = np.where(mask, depth_mm, np.uint16(0))
        head_mm = self._head_mm[row]
        if self.register == "depth_to_gray":
            depth_mm = registration.depth_to_gray(depth_mm, depth_camera, gray_camera)
            camera, head = gray_camera, gray_camera.from_depth_frame(head_mm)
        else:
            gray, depth_mm = registration.gray_to_depth(gray, depth_mm, depth_camera, gray_camera, head_mm[2])
            camera, head = depth_camera, head_mm
        if head[2] <= 0:
            raise Unusable("head centre is behind the colour camera", f"frame_{frame}")
        (x, y), (yaw, pitch, roll) = camera.project(head), self._angles_deg[row].tolist()
        focal_px = (self.focal, self.focal) if self.focal else camera.focal_px
        angles = {"yaw": yaw, "pitch": pitch, "roll": roll}
        return Frame(
            self._info(row), gray, depth_mm, (float(x), float(y)), focal_px, **angles, head_mm=tuple(head_mm.tolist())
        )


def _find_sequences(raw: Path) -> tuple[dict[int, Path], list[str]]:
    """Return the folder of each sequence, by ascending number, and notes."""
    found, notes = {}, []
    for place in [raw / layout for layout in LAYOUTS if (raw / layout).is_dir()] + [raw]:
        for folder in [place / name for name in list_folders(place) if re.fullmatch("[0-9]{2}", name)]:
            number = int(folder.name)
            if not 1 <= number <= SEQUENCES:
                notes.append(f"{folder} is none of Biwi's {SEQUENCES} sequences and not used")
            elif (other := found.setdefault(number, folder)) != folder:
                raise FaceDepthError(
                    f"sequence {folder.name} is in {other} and in {folder}; remove one of them, or give --raw the "
                    "folder to read"
                )
    if not found:
        raise FaceDepthError(f"{raw} holds no sequence of Biwi; {_LAYOUT_TEXT}")
    return dict(sorted(found.items())), notes


def _find_masks(raw: Path) -> Path:
    for folder in (raw / MASKS, raw / ".." / MASKS):
        if folder.is_dir():
            return folder
    raise FaceDepthError(f"there is no folder {MASKS} in {raw} or next to it; get the masks, or leave mask off")


def _person(number: int) -> int:
    return SAME_PERSON.get(number, number)
