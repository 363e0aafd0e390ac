"""Image files to predict: from names, folders and patterns; read upright and in any mode."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from growtas.errors import DataError
from growtas.files import check_folder


def find_images(names: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that are meant, in the order named; those of a folder (and the folders in it) and of a pattern sorted by name.

    A file that is named is taken whatever it is called; in a folder only names that Pillow knows as images count.

    Raises:
        DataError: a name is nothing, a folder can't be read, or a folder or pattern holds no images.
    """
    files: list[Path] = []
    for item in names:
        name, path = os.fspath(item), Path(item)
        if path.is_dir():
            check_folder(path, DataError)
            known = Image.registered_extensions()
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
            if not inside:
                raise DataError(f"{name}: no images in this folder")
            files += inside
        elif path.exists() or not glob.has_magic(name):
            # A file that is not there is reported when it is read, so that the others are answered.
            files.append(path)
        else:
            matching = sorted(Path(file) for file in glob.glob(name, recursive=True) if Path(file).is_file())
            if not matching:
                raise DataError(f"{name}: no file matches this pattern")
            files += matching
    return files


def read_image(path: str | Path) -> Image.Image:
    """An image, decoded and upright (its EXIF orientation applied, as viewers show it).

    Of an animation the first frame; 16-bit grey values are scaled to 8 bits.

    Raises:
        DataError: it can't be read; the message names it and says why.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of images above its limit, and raises from twice that on: here both are refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{path}: the image is too large (over {Image.MAX_IMAGE_PIXELS} pixels)") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that Pillow knows") from None
    # Pillow's decoders raise what they like for a broken file.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: the image can't be read ({reason})") from None
    if image.mode == "P" and "transparency" in image.info:
        # The same colours as straight to RGB, without Pillow's warning.
        return image.convert("RGBA")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image
