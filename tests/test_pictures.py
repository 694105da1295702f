"""Pictures with words: valid XML, everything in its place."""
import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
from skimage.io import imread

from cmr.pictures import Example, example_sheet, forest, labelled_sheet

NAME = "{http://www.w3.org/2000/svg}"


def test_a_sheet_names_its_panels_and_holds_them_as_they_are():
    panels = [[np.full((20, 30, 3), 10 * (3 * i + j), np.uint8) for j in range(3)] for i in range(2)]
    picture = ElementTree.fromstring(labelled_sheet(panels, ["a", "b < c", "d"], ["first", "second"]))
    words = {text.text: (float(text.get("x")), float(text.get("y"))) for text in picture.iter(NAME + "text")}
    images = list(picture.iter(NAME + "image"))
    assert list(words) == ["a", "b < c", "d", "first", "second"] and len(images) == 6
    for image, panel, column in zip(images, [p for row in panels for p in row], ["a", "b < c", "d"] * 2):
        left, top = float(image.get("x")), float(image.get("y"))
        assert left < words[column][0] < left + 30 and words[column][1] < top + 20
        assert top + 20 <= float(picture.get("height")) and left + 30 <= float(picture.get("width"))
        held = imread(io.BytesIO(base64.b64decode(image.get("href").partition(",")[2])))
        assert np.array_equal(held, panel)


def test_a_forest_draws_what_it_says():
    groups = {"Vendor=B": [("vanilla DA", -2.0, -4.0, 1.0, 0)], "Vendor=C": [("vanilla DG", 3.0, 2.0, 5.0, 1)]}
    picture = ElementTree.fromstring(forest(groups))
    zero, *intervals = [(float(line.get("x1")), float(line.get("x2"))) for line in picture.iter(NAME + "line")]
    points = [float(circle.get("cx")) for circle in picture.iter(NAME + "circle")]
    scale = (intervals[1][1] - intervals[1][0]) / 3.0             # pixels of a mm
    rows = [row for group in groups.values() for row in group]
    for (low, high), point, (_, difference, low_mm, high_mm, _) in zip(intervals, points, rows):
        assert np.allclose([low, point, high], zero[0] + scale * np.array([low_mm, difference, high_mm]), atol=0.2)
    assert "-2.0 (-4.0 to +1.0)" in {text.text for text in picture.iter(NAME + "text")}


def test_a_forest_of_rows_that_change_nothing_is_drawn():
    picture = ElementTree.fromstring(forest({"Vendor=B": [("vanilla DA", 0.0, 0.0, 0.0, 0)]}))
    zero, interval = [float(line.get("x1")) for line in picture.iter(NAME + "line")]
    assert abs(zero - interval) < 0.1


def test_an_example_of_any_grid_is_drawn_at_about_200_pixels_a_panel():
    for size, drawn in ((64, 192), (128, 256), (320, 320)):
        image = np.zeros((4, size, size))
        truth = np.zeros(image.shape, np.uint8)
        truth[1:3] = 1
        picture = ElementTree.fromstring(example_sheet(Example("x_ED", image, image, truth, {"baseline": truth})))
        panels = [int(panel.get("height")) for panel in picture.iter(NAME + "image")]
        assert panels == [drawn] * 10                             # two labelled slices, five panels each
