"""nnU-Net's training augmentation (Isensee et al. 2021, version 2), in its order, on CPU tensors.

rotation, scaling -> noise -> blur -> brightness -> contrast -> low resolution -> gamma (inverted) -> gamma -> mirroring
Every sample has its own numpy Generator; a mean or range is that of its patch with the padding.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cmr.nnunet_plan import ANISOTROPY
from cmr.nnunet_preprocess import OUTSIDE

# The probability of each transform, and the range of its parameter.
P_ROTATE, P_SCALE, SCALES = 0.2, 0.2, (0.7, 1.4)
P_NOISE, NOISE_SD = 0.1, (0, 0.1)
P_BLUR, BLUR_SIGMA = 0.1, (0.5, 1)
P_BRIGHTNESS, P_CONTRAST, FACTORS = 0.15, 0.15, (0.75, 1.25)
P_LOW_RESOLUTION, ZOOMS = 0.125, (0.5, 1)
P_GAMMA_INVERTED, P_GAMMA, GAMMAS = 0.1, 0.3, (0.7, 1.5)


@dataclass(frozen=True)
class Augmentation:
    """Augments patches of one size, (y, x) or (z, y, x); masked_norm : keep the image 0 outside its non-zero mask."""
    patch: tuple
    masked_norm: bool = False

    @property
    def in_plane(self):
        """Whether a 3D patch is rotated and scaled slice by slice, because rotating thick slices in 3D is wrong."""
        return len(self.patch) == 3 and max(self.patch) > ANISOTROPY * self.patch[0]

    @property
    def largest_angle(self):
        """Largest rotation, in degrees."""
        if len(self.patch) == 3:
            return 180 if self.in_plane else 30
        return 180 if max(self.patch) <= 1.5 * min(self.patch) else 15

    @property
    def loaded(self):
        """Size to cut from the volume, so that rotation leaves no empty corner in the patch."""
        plane = self.patch[1:] if self.in_plane else self.patch
        return self.patch[:1] * self.in_plane + enlarged(plane, self.largest_angle)

    def __call__(self, image, label, g):
        """Augment image (float32) and label (int8), both (*loaded) -> (*patch); label -1 becomes 0.  g : Generator."""
        rotate, scale = g.random() < P_ROTATE, g.random() < P_SCALE
        if rotate or scale:
            angles = np.zeros(3 if len(self.patch) == 3 and not self.in_plane else 1)
            if rotate:
                angles = np.deg2rad(g.uniform(-self.largest_angle, self.largest_angle, len(angles)))
            image, label = spatial(image, label, self.patch, angles, g.uniform(*SCALES) if scale else 1.0)
        else:
            image, label = centre(image, self.patch), centre(label, self.patch)
        image = self.intensities(image, g)
        mirrored = [axis for axis in range(-len(self.patch), 0) if g.random() < 0.5]
        image, label = image.flip(mirrored), label.flip(mirrored)
        if self.masked_norm:
            image = torch.where(label < 0, 0, image)
        return image, label.clamp(min=0)

    def intensities(self, image, g):
        """Apply the transforms from noise to gamma to one z-scored image (*patch); no voxel moves."""
        if g.random() < P_NOISE:
            sd = g.uniform(*NOISE_SD)
            image = image + sd * torch.from_numpy(g.standard_normal(self.patch, np.float32))
        if g.random() < P_BLUR:
            image = blur(image, g.uniform(*BLUR_SIGMA, len(self.patch)))
        if g.random() < P_BRIGHTNESS:
            image = image * around_one(*FACTORS, g)
        if g.random() < P_CONTRAST:
            image = contrast(image, around_one(*FACTORS, g))
        if g.random() < P_LOW_RESOLUTION:
            image = low_resolution(image, g.uniform(*ZOOMS), 2 if self.in_plane else image.ndim)
        if g.random() < P_GAMMA_INVERTED:
            image = -gamma(-image, around_one(*GAMMAS, g))
        if g.random() < P_GAMMA:
            image = gamma(image, around_one(*GAMMAS, g))
        return image


def around_one(low, high, g):
    """Draw a factor from [low, 1] or [1, high] with equal probability, so that shrinking is as frequent as growing."""
    return g.uniform(low, 1) if g.random() < 0.5 else g.uniform(1, high)


def enlarged(patch, angle_degrees):
    """The size to load so that `patch` stays full when rotated by up to the angle and shrunk by nnU-Net's 0.85."""
    a = math.radians(min(90, angle_degrees))
    largest = np.array(patch, float)
    pairs = [(0, 1)] if len(patch) == 2 else [(1, 2), (0, 2), (0, 1)]
    for i, j in pairs:
        u, v = patch[i], patch[j]
        sign = -1 if (i, j) == (0, 2) else 1                      # the direction of rotation about each axis
        largest[i] = max(largest[i], abs(u * math.cos(a) + sign * v * math.sin(a)))
        largest[j] = max(largest[j], abs(v * math.cos(a) - sign * u * math.sin(a)))
    return tuple(int(n) for n in largest / 0.85)


def centre(array, patch):
    """Cut the middle of an array to the size `patch`, without interpolation."""
    return array[tuple(slice(n // 2 - q // 2, n // 2 - q // 2 + q) for n, q in zip(array.shape, patch))]


def spatial(image, label, patch, angles, scale):
    """Rotate and scale (> 1 zooms out) about the centre, and cut to `patch`; beyond the border the label is -1.

    angles : radians; one turns every slice in-plane, three turn the volume about axes 0, 1, 2.
    Image and 0/1 maps of the labels are interpolated linearly; the largest map wins, in a tie the lower label.
    """
    plane = patch if len(angles) == 3 else patch[-2:]
    loaded = image.shape[-len(plane):]
    offsets = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in plane]
    output = torch.stack(torch.meshgrid(*offsets, indexing="ij"), -1)                # (*plane, axes), from the centre
    places = output @ torch.from_numpy(scale * rotation(angles)).T
    grid = (places / (torch.tensor(loaded) / 2)).flip(-1)[None].to(image.dtype)      # grid_sample's order: x first

    def sample(array):
        folded = array.reshape(1, -1, *loaded)                    # in-plane, the slices are its channels
        return F.grid_sample(folded, grid, mode="bilinear", padding_mode="zeros", align_corners=False).reshape(patch)

    shares = [sample((label == k).to(image.dtype)) for k in range(int(label.max()) + 1)]
    best, found = 1 - sum(shares), torch.full(patch, OUTSIDE, dtype=label.dtype)
    for k, share in enumerate(shares):                            # an argmax, as torch's is slow over the first axis
        better = share > best
        best, found = torch.where(better, share, best), torch.where(better, k, found)
    return sample(image), found


def rotation(angles):
    """Rotation matrix on (y, x) for one angle in radians, or on (z, y, x) for three: about axis 0, then 1, then 2."""
    if len(angles) == 1:
        c, s = math.cos(angles[0]), math.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_0 = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_1 = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_2 = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_2 @ about_1 @ about_0


def blur(image, sigmas):
    """Gaussian blur, reflected at the border; sigmas : voxels, one per axis.  Axes too short for it are skipped."""
    for axis, sigma in enumerate(sigmas):
        half = round((6 * sigma + 0.5 - 1) / 2)                   # the kernel's odd size is nearest to 6 sigma + 0.5
        if half < 1 or image.shape[axis] <= half:
            continue
        kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(image.dtype)
        lines = image.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (half, half), mode="reflect")
        image = F.conv1d(padded, kernel.view(1, 1, -1)).reshape(lines.shape).movedim(-1, axis)
    return image


def contrast(image, factor):
    """Stretch intensities about their mean by `factor`, and clip them to their former range."""
    mean = image.mean()
    return ((image - mean) * factor + mean).clamp(image.min(), image.max())


def low_resolution(image, zoom, dims):
    """Reduce the last `dims` axes to `zoom` of their size by nearest neighbour, and enlarge them linearly again."""
    size = [*image.shape[:-dims], *(max(1, round(n * zoom)) for n in image.shape[-dims:])]
    lower = F.interpolate(image[None, None], size, mode="nearest-exact")
    linear = "bilinear" if image.ndim == 2 else "trilinear"
    return F.interpolate(lower, image.shape, mode=linear, align_corners=False)[0, 0]


def gamma(image, exponent):
    """Apply a power law to the patch's range, then restore its mean and standard deviation."""
    low, span = image.min(), image.max() - image.min()
    curved = ((image - low) / span.clamp(min=1e-7)) ** exponent * span + low
    return (curved - curved.mean()) * image.std() / curved.std().clamp(min=1e-7) + image.mean()
