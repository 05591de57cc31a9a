"""Features of images from a pretrained ResNet-50: ``scripts/extract_features.py stl10 OUT.npz``.

Needs torchvision: pip install '.[features]'. Killed, the same command goes on.
"""

import argparse
from pathlib import Path

from clusterlab.data import features
from clusterlab.data.download import HOMES, retrieve
from clusterlab.errors import exit_on_error


def main() -> None:
    """Open the images, extract their features, write the file that data=npz takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", help="stl10 or cifar10, a folder of images, or an npz file")
    parser.add_argument("out", type=Path, help="the npz file to write")
    parser.add_argument("--labels", choices=("folder",), help="subfolders name the classes")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="torchvision's; none: random")
    parser.add_argument("--archive", type=Path, help="of stl10 or cifar10, fetched by hand")
    arguments = parser.parse_args()
    with exit_on_error(OSError):
        weights = None if arguments.weights == "none" else arguments.weights
        network = features.resnet50(weights)
        archives = {"stl10": features.stl10, "cifar10": features.cifar10}
        if arguments.images in archives:
            archive = arguments.archive or retrieve(HOMES[arguments.images], arguments.out.parent)
            images = archives[arguments.images](archive)
        else:
            images = features.photographs(arguments.images, arguments.labels)
        made_by = f"ResNet-50, {arguments.weights}"
        features.extract(network, images, arguments.out, made_by, arguments.batch)
    print(arguments.out)


if __name__ == "__main__":
    main()
