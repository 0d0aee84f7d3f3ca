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
import os
import re
from pathlib import Path

import numpy as np

from facedepth_jax.data import images
from facedepth_jax.data.frames import MAX_FOCAL_PX, Frame, FrameInfo, option
from facedepth_jax.data.readers import biwi_files, registration
from facedepth_jax.data.readers.raw import Fault, RawSource, find_copies, list_folders, split_of
from facedepth_jax.errors import FaceDepthError

# By sequence; all others train. The test sequences are those of the authors' group, the validation is our choice.
SPLITS = {"test": (1, 10, 11), "validation": (12, 13)}
SEQUENCES = 24
TEST_FRAMES = {1: 498, 10: 726, 11: 572}
SAME_PERSON = {15: 3, 18: 5, 21: 2, 22: 7}  # recorded twice: one person each

REGISTER = ("depth_to_gray", "gray_to_depth")
LAYOUTS = ("hpdb", "faces_0", ".")
MASKS = "head_pose_masks"
FILES = {"pose": "pose.txt", "depth": "depth.bin", "rgb": "rgb.png"}  # of each frame

_LAYOUT_TEXT = (
    "the layout is hpdb/01 .. hpdb/24 (or faces_0/01 ..) with frame_00003_rgb.png, frame_00003_depth.bin, "
    "frame_00003_pose.txt, ..., rgb.cal and depth.cal in each; --raw is the folder that holds hpdb, or hpdb itself"
)


@dataclasses.dataclass
class BiwiSource(RawSource):
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
        listings = {number: _list_frames(folder, FILES) for number, folder in folders.items()}
        pose_texts = {
            number: {f: biwi_files.read_text(folder / f"frame_{f}_pose.txt") for f in listings[number]["pose"]}
            for number, folder in folders.items()
        }
        copies = find_copies({n: {text for text in texts.values() if text} for n, texts in pose_texts.items()}, _person)
        self._frames, self._faults, self._folders, self._cameras = [], {}, {}, {}
        poses, digest = [], hashlib.sha256()
        for number, folder in folders.items():
            listing, texts = listings[number], pose_texts[number]
            frames = sorted(set().union(*listing.values()))
            if not frames:
                self._notes.append(f"{folder} holds no frame")
                continue
            self._folders[number] = folder
            self._cameras[number], cal_texts, fault = biwi_files.read_cameras(folder)
            if not fault and not self._cameras[number][0].is_reference:
                self._notes.append(f"{folder / 'depth.cal'} has an R or T of its own, which is not used")
            if number in copies:
                original, common = copies[number]
                fault = (f"copy of sequence {original:02d}", f"{common} poses are the same to the byte")
            masks = _list_frames(self._masks / f"{number:02d}", {"mask": "depth_mask.png"})["mask"] if self.mask else ()
            for frame in frames:
                missing = [name for kind, name in FILES.items() if frame not in listing[kind]]
                pose, pose_fault = biwi_files.parse_pose(texts.get(frame))
                if missing and not fault:
                    names = ", ".join(f"{folder.name}/frame_{frame}_{name}" for name in missing)
                    self._faults[len(self)] = (f"{missing[0]} is missing", names)
                elif fault or pose_fault:
                    self._faults[len(self)] = fault or pose_fault
                elif self.mask and frame not in masks:
                    self._faults[len(self)] = ("mask is missing", f"{MASKS}/{number:02d}")
                self._frames.append((number, frame))
                poses.append(pose)
                digest.update(f"{number:02d}_{frame} {missing} {self.mask and frame in masks}\n".encode())
                digest.update(texts.get(frame) or b"")
            digest.update(b"".join(cal_texts))
        if not self._frames:
            raise FaceDepthError(f"{self.raw} holds no frame of Biwi; {_LAYOUT_TEXT}")
        poses = np.array(poses)
        rotations, self._head_mm = poses[:, :9].reshape(-1, 3, 3), poses[:, 9:]
        self._angles_deg = biwi_files.angles_deg(rotations)
        for row in np.flatnonzero(~biwi_files.is_rotation(rotations)).tolist():
            self._faults.setdefault(row, ("pose is no rotation", f"frame_{self._frames[row][1]}"))
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
        """Name missing and foreign sequences, mixed layouts and test sequences of another length than the paper's.

        Also how wide the window is, where Eq. 6 takes another focal length than the camera has.
        """
        notes = list(self._notes)
        missing = [f"{number:02d}" for number in range(1, SEQUENCES + 1) if number not in self._folders]
        if missing:
            notes.append(f"{len(missing)} of {SEQUENCES} sequences are missing: {', '.join(missing)}")
        for number, want in TEST_FRAMES.items():
            count = sum(number == of for of, _ in self._frames)
            if count not in (0, want):
                notes.append(f"test sequence {number:02d} has {count} frames, not {want} as published")
        which = self.register == "depth_to_gray"  # the second camera is the colour camera
        own = np.mean([cameras[which].focal_px for cameras in self._cameras.values() if cameras] or [[self.focal]])
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
        biwi_files.check_size("gray image", gray, gray_camera)
        if self._masks:
            depth_mm = np.where(biwi_files.read_mask(self._masks, number, frame, depth_camera), depth_mm, np.uint16(0))
        head_mm = self._head_mm[row]
        if self.register == "depth_to_gray":
            depth_mm = registration.depth_to_gray(depth_mm, depth_camera, gray_camera)
            camera, head = gray_camera, gray_camera.from_depth_frame(head_mm)
        else:
            gray, depth_mm = registration.gray_to_depth(gray, depth_mm, depth_camera, gray_camera, head_mm[2])
            camera, head = depth_camera, head_mm
        if head[2] <= 0:
            raise images.Unusable("head centre is behind the colour camera", f"frame_{frame}")
        (x, y), (yaw, pitch, roll) = camera.project(head), self._angles_deg[row].tolist()
        focal_px = (self.focal, self.focal) if self.focal else camera.focal_px
        angles = {"yaw": yaw, "pitch": pitch, "roll": roll}
        return Frame(
            self._info(row), gray, depth_mm, (float(x), float(y)), focal_px, **angles, head_mm=tuple(head_mm.tolist())
        )


def _find_sequences(raw: Path) -> tuple[dict[int, Path], list[str]]:
    """Return the folder of each sequence, by ascending number, and notes."""
    if not raw.is_dir():
        raise FaceDepthError(f"the raw directory {raw} does not exist")
    found, notes, used = {}, [], []
    for layout in LAYOUTS:
        if not (raw / layout).is_dir():
            continue
        names = [name for name in list_folders(raw / layout) if re.fullmatch("[0-9]{2}", name)]
        if names:
            used.append(str(raw / layout))
        for name in names:
            if not 1 <= int(name) <= SEQUENCES:
                notes.append(f"{raw / layout / name} is none of Biwi's {SEQUENCES} sequences and not used")
            elif int(name) in found:
                raise FaceDepthError(
                    f"sequence {name} is in {found[int(name)]} and in {raw / layout / name}; remove one of them, or "
                    f"give --raw the folder to read"
                )
            else:
                found[int(name)] = raw / layout / name
    if not found:
        raise FaceDepthError(f"{raw} holds no sequence of Biwi; {_LAYOUT_TEXT}")
    if len(used) > 1:
        notes.append(f"the sequences are taken from {' and '.join(used)} together")
    return dict(sorted(found.items())), notes


def _find_masks(raw: Path) -> Path:
    for folder in (raw / MASKS, raw / ".." / MASKS):
        if folder.is_dir():
            return folder
    raise FaceDepthError(f"there is no folder {MASKS} in {raw} or next to it; get the masks, or leave mask off")


def _list_frames(folder: Path, files: dict[str, str]) -> dict[str, set[str]]:
    """Return, for each kind of file, the numbers ("00003") of the frames that have one."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise FaceDepthError(f"{folder} cannot be read ({error.strerror})") from None
    matches = [match for name in names if (match := re.fullmatch("frame_([0-9]{5})_(.*)", name))]
    return {kind: {match[1] for match in matches if match[2] == name} for kind, name in files.items()}


def _person(number: int) -> int:
    return SAME_PERSON.get(number, number)
