"""The Biwi Kinect Head Pose Database (Fanelli et al., IJCV 2013) as ETH gives it out; docs/biwi.md has the terms.

hpdb/01 .. hpdb/24 (in a copy on the web faces_0/01 ..), each with
  frame_00003_rgb.png     colour, 8 bits
  frame_00003_depth.bin   depth, see biwi_files.decode_depth
  frame_00003_pose.txt    the head's rotation, three rows, and its centre in mm in the depth camera's frame
  rgb.cal, depth.cal      the cameras, see biwi_files; X_rgb = R X_depth + T with R and T of rgb.cal
head_pose_masks/01 ..     beside it, optional: frame_00003_depth_mask.png, not 0 on the head
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facedepth_jax.data import images, splits
from facedepth_jax.data.frames import MAX_FOCAL_PX, Frame, FrameInfo, Reject
from facedepth_jax.data.readers import biwi_files, registration
from facedepth_jax.errors import FaceDepthError

REGISTER = ("depth_to_gray", "gray_to_depth")
LAYOUTS = ("hpdb", "faces_0", ".")
MASKS = "head_pose_masks"
FILES = {"pose": "pose.txt", "depth": "depth.bin", "rgb": "rgb.png"}  # of each frame

_LAYOUT_TEXT = (
    "the layout is hpdb/01 .. hpdb/24 (or faces_0/01 ..) with frame_00003_rgb.png, frame_00003_depth.bin, "
    "frame_00003_pose.txt, ..., rgb.cal and depth.cal in each; --raw is the folder that holds hpdb, or hpdb itself"
)


class BiwiSource:
    """The database as a `frames.Source` of registered pairs. All text files are checked at once, images when loaded.

    The subject is the person (sequence 15 shows subject "03" again); `sequence` is 0, for Biwi's recordings are not
    Pandora's S1..S5. Angles are those of the binary annotation: R = Rz Ry Rx, pitch = rx, yaw = ry, roll = rz.
    """

    name = "biwi"

    def __init__(self, raw: str, *, register: str = "depth_to_gray", focal: float = 370.0, mask: bool = False):
        """
        Args:
          raw: the directory that holds `hpdb` or `faces_0`, or one of those.
          register: "depth_to_gray" carries the depth over to the colour camera and leaves the gray image as it was
            taken; "gray_to_depth" samples gray where each depth pixel is seen and leaves the depth image.
          focal: focal length in pixels for Eq. 6; the default is the paper's, 0 takes the calibration's of the camera
            that the pair is registered to.
          mask: take away the depth outside of the head masks that come with the database.

        Raises:
          FaceDepthError: an option makes no sense; there is no sequence, or one twice; masks are wanted but not there;
            a symbolic link leads out of `raw`.
        """
        self._raw, self._register = Path(raw), register
        focal, mask = float(focal), bool(mask)
        if register not in REGISTER:
            raise FaceDepthError(f"register is '{register}', not one of {', '.join(REGISTER)}")
        if focal and not 1 <= focal <= MAX_FOCAL_PX:
            raise FaceDepthError(f"focal is {focal}, not 1 to {MAX_FOCAL_PX} pixels or 0 (the calibration's)")
        folders, self._notes = _find_sequences(self._raw)
        self._masks = _find_masks(self._raw) if mask else None
        for folder, root in [(f, self._raw) for f in folders.values()] + [(self._masks, self._masks)] * mask:
            images.check_links(folder, root)
        self._index, self._numbers, self._rejects, self._cameras = [], [], {}, {}
        poses, digest, self._folders = [], hashlib.sha256(), {}
        listings = {number: _listing(folder) for number, folder in folders.items()}
        pose_texts = {n: _read_poses(folder, listings[n]["pose"]) for n, folder in folders.items()}
        copies = _find_copies(pose_texts)
        for number, folder in folders.items():
            listing, contents = listings[number], pose_texts[number]
            frames = sorted(set().union(*(listing[kind] for kind in FILES)))
            if not frames:
                self._notes.append(f"{folder} holds no frame")
                continue
            self._folders[number] = folder
            cameras, texts, reason, detail = biwi_files.read_cameras(folder)
            if cameras and not cameras[0].is_reference:
                self._notes.append(f"{folder / 'depth.cal'} has an R or T of its own, which is not used")
            if number in copies:
                reason, detail = copies[number]
            masks = _listing_masks(self._masks, number) if mask else None
            for frame in frames:
                info = _info(number, frame)
                pose, lack = biwi_files.parse_pose(contents.get(frame))
                missing = [name for kind, name in FILES.items() if frame not in listing[kind]]
                if reason:
                    self._rejects[info.frame] = Reject(info, reason, detail)
                elif missing:
                    names = ", ".join(f"{folder.name}/frame_{frame}_{name}" for name in missing)
                    self._rejects[info.frame] = Reject(info, f"{missing[0]} is missing", names)
                elif lack:
                    self._rejects[info.frame] = Reject(info, *lack)
                elif mask and frame not in masks:
                    self._rejects[info.frame] = Reject(info, "mask is missing", f"{MASKS}/{number:02d}")
                self._index.append(info)
                self._numbers.append((number, frame))
                poses.append(pose)
                digest.update(f"{info.frame} {missing} {mask and frame in masks}\n".encode())
                digest.update(contents.get(frame) or b"")
            digest.update(b"".join(texts))
            self._cameras[number] = cameras
        if not self._index:
            raise FaceDepthError(f"{raw} holds no frame of Biwi; {_LAYOUT_TEXT}")
        poses = np.array(poses)
        self._head_mm = poses[:, 9:]
        self._angles_deg = biwi_files.angles_deg(poses[:, :9].reshape(-1, 3, 3))
        for row in np.flatnonzero(~biwi_files.is_rotation(poses[:, :9].reshape(-1, 3, 3))):
            info = self._index[row]
            self._rejects.setdefault(info.frame, Reject(info, "pose is no rotation", f"frame_{self._numbers[row][1]}"))
        self._focal = focal
        self._notes += _count_notes(self._folders, self._index)
        self.settings = {"annotations_sha256": digest.hexdigest(), "register": register, "focal": focal, "mask": mask}

    def index(self) -> list[FrameInfo]:
        """All frames of which there is any file, by sequence and number."""
        return list(self._index)

    def known_rejects(self) -> list[Reject]:
        """Files that are not there, poses and calibrations that cannot be used, copied sequences."""
        return [self._rejects[info.frame] for info in self._index if info.frame in self._rejects]

    def notes(self) -> list[str]:
        """Missing and foreign sequences, mixed layouts, test sequences of another length than the paper's, and how wide
        the window is where Eq. 6 takes another focal length than the camera has."""
        notes = list(self._notes)
        which = self._register == "depth_to_gray"  # the second camera is the colour camera
        own = np.mean([cameras[which].focal_px for cameras in self._cameras.values() if cameras] or [[self._focal]])
        if self._focal and abs(self._focal / own - 1) > 0.01:
            notes.append(
                f"focal={self._focal:g} where the calibration says {own:.1f} px: "
                f"the window shows {self._focal / own:.0%} of face_mm, see docs/biwi.md"
            )
        return notes

    def load(self, start: int, stop: int) -> Iterator[Frame | Reject]:
        """One item for each entry of `index()[start:stop]`; a Reject where a file cannot be used."""
        for row, info in list(enumerate(self._index))[start:stop]:
            try:
                yield self._rejects.get(info.frame) or self._load(row)
            except images.Unusable as error:
                yield Reject(info, *error.args)

    def _load(self, row: int) -> Frame:
        number, frame = self._numbers[row]
        depth_camera, gray_camera = self._cameras[number]
        folder = self._folders[number]
        depth_mm = biwi_files.read_depth(folder / f"frame_{frame}_depth.bin", depth_camera.size)
        gray = images.read_gray(folder, f"frame_{frame}_rgb.png")
        biwi_files.check_size("gray image", gray, gray_camera)
        if self._masks:
            depth_mm = np.where(biwi_files.read_mask(self._masks, number, frame, depth_camera), depth_mm, np.uint16(0))
        head_mm = self._head_mm[row]
        if self._register == "depth_to_gray":
            depth_mm = registration.depth_to_gray(depth_mm, depth_camera, gray_camera)
            camera, head = gray_camera, gray_camera.from_depth_frame(head_mm)
        else:
            gray, depth_mm = registration.gray_to_depth(gray, depth_mm, depth_camera, gray_camera, head_mm[2])
            camera, head = depth_camera, head_mm
        if head[2] <= 0:
            raise images.Unusable("head centre is behind the colour camera", f"frame_{frame}")
        (x, y), (yaw, pitch, roll) = camera.project(head), self._angles_deg[row]
        return Frame(
            self._index[row],
            gray,
            depth_mm,
            (float(x), float(y)),
            (self._focal, self._focal) if self._focal else camera.focal_px,
            yaw=float(yaw),
            pitch=float(pitch),
            roll=float(roll),
            head_mm=tuple(head_mm.tolist()),
        )


def _find_sequences(raw: Path) -> tuple[dict[int, Path], list[str]]:
    """Sequence number -> folder, ascending; notes."""
    if not raw.is_dir():
        raise FaceDepthError(f"the raw directory {raw} does not exist")
    found, notes, used = {}, [], []
    for layout in LAYOUTS:
        try:
            names = sorted(entry.name for entry in os.scandir(raw / layout) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise FaceDepthError(f"{raw / layout} cannot be read ({error.strerror})") from None
        names = [name for name in names if re.fullmatch("[0-9]{2}", name)]
        if names:
            used.append(str(raw / layout))
        for name in names:
            if not 1 <= int(name) <= splits.BIWI_SEQUENCES:
                notes.append(f"{raw / layout / name} is none of Biwi's {splits.BIWI_SEQUENCES} sequences and not used")
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
    raise FaceDepthError(f"there is no folder {MASKS} in or beside {raw}; get the masks, or leave mask off")


def _listing(folder: Path) -> dict[str, set[str]]:
    """Kind of FILES -> the numbers ("00003") of the frames that have such a file."""
    found = {kind: set() for kind in FILES}
    kinds = {name: kind for kind, name in FILES.items()}
    for name in _file_names(folder):
        if (match := re.fullmatch(r"frame_([0-9]{5})_(.*)", name)) and match[2] in kinds:
            found[kinds[match[2]]].add(match[1])
    return found


def _listing_masks(masks: Path, number: int) -> set[str]:
    names = _file_names(masks / f"{number:02d}")
    return {m[1] for name in names if (m := re.fullmatch(r"frame_([0-9]{5})_depth_mask\.png", name))}


def _file_names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FaceDepthError(f"{folder} cannot be read ({error.strerror})") from None


def _person(number: int) -> int:
    return splits.BIWI_SAME_PERSON.get(number, number)


def _info(number: int, frame: str) -> FrameInfo:
    person = _person(number)
    return FrameInfo(f"{number:02d}_{frame}", f"{person:02d}", 0, splits.split_of(person, splits.BIWI_SPLITS))


def _read_poses(folder: Path, frames: set[str]) -> dict[str, bytes | None]:
    return {frame: biwi_files.read_text(folder / f"frame_{frame}_pose.txt") for frame in frames}


def _find_copies(pose_texts: dict[int, dict[str, bytes | None]]) -> dict[int, tuple[str, str]]:
    """Sequence -> (reason, detail), where two have half of the poses of the shorter one in common, to the byte.

    Of one person the first stays; of two people none does, as it cannot be told whom they show.
    """
    poses = {number: {text for text in texts.values() if text} for number, texts in pose_texts.items()}
    copies = {}
    for one, other in itertools.combinations(poses, 2):
        common = len(poses[one] & poses[other])
        if common and 2 * common >= min(len(poses[one]), len(poses[other])):
            detail = f"{common} poses are the same to the byte"
            copies.setdefault(other, (f"copy of sequence {one:02d}", detail))
            if _person(one) != _person(other):
                copies.setdefault(one, (f"copy of sequence {other:02d}", detail))
    return copies


def _count_notes(folders: dict, index: list[FrameInfo]) -> list[str]:
    notes = []
    missing = [f"{number:02d}" for number in range(1, splits.BIWI_SEQUENCES + 1) if number not in folders]
    if missing:
        notes.append(f"{len(missing)} of {splits.BIWI_SEQUENCES} sequences are missing: {', '.join(missing)}")
    for number, want in splits.BIWI_TEST_FRAMES.items():
        count = sum(info.frame.startswith(f"{number:02d}_") for info in index)
        if number in folders and count != want:
            notes.append(f"test sequence {number:02d} has {count} frames, not {want} as published")
    return notes
