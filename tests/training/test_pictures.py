"""Pictures as the networks see them: the authors' geometry and buckets, and files of every kind."""

import numpy as np
import pytest
import torchvision.transforms as T
from PIL import Image
from pixart_delta.pixart_core.resolution import bins
from pixart_delta.training.config import ConfigError, PrepareConfig
from pixart_delta.training.prepare.pictures import PictureError, buckets, fit, nearest_bucket, open_picture

from tests.training.picture_fixture import draw_picture


@pytest.mark.parametrize("size", [(100, 100), (64, 64), (301, 77), (50, 199), (41, 33), (97, 129)])
@pytest.mark.parametrize("bucket", [(64, 64), (48, 80), (80, 48), (32, 128)])
def test_fit_is_the_authors_transform(size, bucket):
    """InternalDataMS.getdata: torchvision's Resize (bicubic) and CenterCrop on a PIL image."""
    picture = draw_picture(1, *size)
    if bucket[0] / size[0] > bucket[1] / size[1]:
        resized = bucket[0], int(size[1] * bucket[0] / size[0])
    else:
        resized = int(size[0] * bucket[1] / size[1]), bucket[1]
    expected = T.CenterCrop(bucket)(T.Resize(resized, interpolation=T.InterpolationMode.BICUBIC)(picture))
    assert np.array_equal(fit(picture, *bucket), np.asarray(expected))


def test_fit_never_comes_out_too_small():
    for side in range(1, 200, 7):
        assert fit(draw_picture(0, side, side), 48, 80).shape == (48, 80, 3)
        assert fit(draw_picture(0, 3 * side, 5 * side), 48, 80).shape == (48, 80, 3)


def test_buckets_are_the_authors_scaled():
    for resolution in (256, 512, 1024):
        assert buckets(resolution) == bins(resolution, training=True) and len(buckets(resolution)) == 40
    small = buckets(128)
    assert {(128, 128), (96, 160), (160, 96), (64, 256), (256, 64)} <= set(small.values()) and len(small) == 11
    assert all(height % 16 == width % 16 == 0 for base in (64, 128, 768) for height, width in buckets(base).values())
    assert buckets(512, multi_aspect=False) == {1.0: (512, 512)}


@pytest.mark.parametrize("resolution", range(16, 1100, 16))
def test_every_resolution_that_is_taken_has_a_square(resolution):
    assert PrepareConfig(input="a", output="b", resolution=resolution).resolution == resolution
    assert buckets(resolution)[1.0] == buckets(resolution, multi_aspect=False)[1.0] == (resolution, resolution)


@pytest.mark.parametrize("resolution, nearest", [(200, 192), (1000, 992), (100, 96), (17, 16), (1023, 1024)])
def test_other_resolutions_are_refused(resolution, nearest):
    for multi_aspect in (True, False):
        with pytest.raises(ConfigError, match=f"resolution is {resolution}: a multiple of 16 .* nearest is {nearest}"):
            PrepareConfig(input="a", output="b", resolution=resolution, multi_aspect=multi_aspect)


@pytest.mark.parametrize("size, key", [((96, 160), 0.6), ((160, 96), 1.67), ((1000, 1000), 1.0), ((100, 400), 0.25)])
def test_nearest_bucket(size, key):
    assert nearest_bucket(*size, buckets(128)) == key


def test_kinds_of_files(tmp_path):
    def kept(picture, name, **options):
        picture.save(tmp_path / name, **options)
        return np.asarray(open_picture(tmp_path / name))

    rgb = draw_picture(0, 6, 9)
    assert np.array_equal(kept(rgb, "a.png"), np.asarray(rgb))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert kept(rgb, "b.png", exif=exif).shape == (9, 6, 3)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (kept(clear, "c.png") == 255).all() and (kept(clear, "c.webp", lossless=True) == 255).all()
    assert (kept(Image.new("P", (4, 4), 0), "d.gif", transparency=0) == 255).all()
    assert (kept(Image.new("L", (4, 4), 7), "e.png") == 7).all()
    assert kept(Image.new("CMYK", (4, 4)), "f.jpg").shape == (4, 4, 3)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(PictureError, match="^there is no such file$"):
        open_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match="^UnidentifiedImageError: cannot identify image file$"):
        open_picture(tmp_path / "text.png")
    draw_picture(0, 64, 64).save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:900])
    with pytest.raises(PictureError, match="truncated"):
        open_picture(tmp_path / "half.jpg")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(PictureError, match="more than 8 bits a channel .*: save it as 8-bit RGB"):
        open_picture(tmp_path / "deep.png")
