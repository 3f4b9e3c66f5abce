"""The sets of torchvision 0.28 that `source: torchvision` supports.

torchvision has no such list: each of its classes keeps names of splits, archives and digests in a
way of its own. The tests compare this one with the installed version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.records import Split


@dataclass(frozen=True)
class KnownSet:
    """A classification set: images, and one class for each of them."""

    splits: Mapping[Split, Mapping[str, Any]]
    """The arguments that choose each split; `train` is always there, others may have to be cut."""
    archives: Mapping[str, str | None]
    """The MD5 that each file was published with, by its name; None where none was published."""
    folder: str = ""
    """Where the set looks for its archives, below its root folder."""


def _named(*names: str) -> dict[Split, Mapping[str, Any]]:
    """Splits that the argument `split` names."""
    ours: dict[str, Split] = {"valid": "val", "val": "val", "test": "test"}
    return {ours.get(name, "train"): {"split": name} for name in names}


_HALVES: dict[Split, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: dict[Split, Mapping[str, Any]] = {"train": {}}

KNOWN_SETS: dict[str, KnownSet] = {
    "MNIST": KnownSet(
        _HALVES,
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        folder="MNIST/raw",
    ),
    "FashionMNIST": KnownSet(
        _HALVES,
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        folder="FashionMNIST/raw",
    ),
    "KMNIST": KnownSet(
        _HALVES,
        {
            "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
        },
        folder="KMNIST/raw",
    ),
    "EMNIST": KnownSet(
        _HALVES,
        {
            "gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e",
        },
        folder="EMNIST/raw",
    ),
    "CIFAR10": KnownSet(
        _HALVES,
        {
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        },
    ),
    "CIFAR100": KnownSet(
        _HALVES,
        {
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        },
    ),
    "USPS": KnownSet(
        _HALVES,
        {
            "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
            "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
        },
    ),
    "Caltech101": KnownSet(
        _WHOLE,
        {
            "caltech-101.zip": "3138e1922a9193bfa496528edbbc45d0",
        },
        folder="caltech101",
    ),
    "Caltech256": KnownSet(
        _WHOLE,
        {
            "256_ObjectCategories.tar": "67b4f42ca05d46448c6bb8ecd2220f6d",
        },
        folder="caltech256",
    ),
    "CLEVRClassification": KnownSet(
        _named("train", "val"),
        {
            "CLEVR_v1.0.zip": "b11922020e72d0cd9154779b2d3d07d2",
        },
        folder="clevr",
    ),
    "Country211": KnownSet(
        _named("train", "valid", "test"),
        {
            "country211.tgz": "84988d7644798601126c29e9877aab6a",
        },
    ),
    "DTD": KnownSet(
        _named("train", "val", "test"),
        {
            "dtd-r1.0.1.tar.gz": "fff73e5086ae6bdbea199a49dfb8a4c1",
        },
        folder="dtd",
    ),
    "EuroSAT": KnownSet(
        _WHOLE,
        {
            "EuroSAT.zip": "c8fa014336c82ac7804f0398fcb19387",
        },
        folder="eurosat",
    ),
    "FakeData": KnownSet(
        _WHOLE,
        {},
    ),
    "FER2013": KnownSet(
        _named("train", "test"),
        {
            "train.csv": "3f0dfb3d3fd99c811a1299cb947e3131",
            "test.csv": "b02c2298636a634e8c2faabbf3ea9a23",
            "fer2013.csv": "f8428a1edbd21e88f42c73edd2a14f95",
            "icml_face_data.csv": "b114b9e04e6949e5fe8b6a98b3892b1d",
        },
        folder="fer2013",
    ),
    "FGVCAircraft": KnownSet(
        _named("train", "val", "test"),
        {
            "fgvc-aircraft-2013b.tar.gz": None,
        },
    ),
    "Flowers102": KnownSet(
        _named("train", "val", "test"),
        {
            "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
            "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
            "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
        },
        folder="flowers-102",
    ),
    "Food101": KnownSet(
        _named("train", "test"),
        {
            "food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87",
        },
    ),
    "GTSRB": KnownSet(
        _named("train", "test"),
        {
            "GTSRB-Training_fixed.zip": "513f3c79a4c5141765e10e952eaa2478",
            "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
            "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
        },
        folder="gtsrb",
    ),
    "ImageNet": KnownSet(
        _named("train", "val"),
        {
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
        },
    ),
    "Imagenette": KnownSet(
        _named("train", "val"),
        {
            "imagenette2.tgz": "fe2fc210e6bb7c5664d602c3cd71e612",
            "imagenette2-320.tgz": "3df6f0d01a2c9592104656642f5e78a3",
            "imagenette2-160.tgz": "e793b78cc4c9e9a4ccc0c1155377a412",
        },
    ),
    "INaturalist": KnownSet(
        _WHOLE,
        {
            "2017.tgz": "7c784ea5e424efaec655bd392f87301f",
            "2018.tgz": "b1c6952ce38f31868cc50ea72d066cc3",
            "2019.tgz": "c60a6e2962c9b8ccbd458d12c8582644",
            "2021_train.tgz": "e0526d53c7f7b2e3167b2b43bb2690ed",
            "2021_train_mini.tgz": "db6ed8330e634445efc8fec83ae81442",
            "2021_valid.tgz": "f6f6e0e242e3d4c9569ba56400938afc",
        },
    ),
    "Omniglot": KnownSet(
        _WHOLE,
        {
            "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
            "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
        },
        folder="omniglot-py",
    ),
    "OxfordIIITPet": KnownSet(
        _named("trainval", "test"),
        {
            "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
        },
        folder="oxford-iiit-pet",
    ),
    "PCAM": KnownSet(
        _named("train", "val", "test"),
        {
            "camelyonpatch_level_2_split_train_x.h5.gz": "1571f514728f59376b705fc836ff4b63",
            "camelyonpatch_level_2_split_train_y.h5.gz": "35c2d7259d906cfc8143347bb8e05be7",
            "camelyonpatch_level_2_split_test_x.h5.gz": "d8c2d60d490dbd479f8199bdfa0cf6ec",
            "camelyonpatch_level_2_split_test_y.h5.gz": "60a7035772fbdb7f34eb86d4420cf66a",
            "camelyonpatch_level_2_split_valid_x.h5.gz": "d5b63470df7cfa627aeec8b9dc0c066e",
            "camelyonpatch_level_2_split_valid_y.h5.gz": "2b85f58b927af9964a4c15b8f7e8f179",
        },
        folder="pcam",
    ),
    "Places365": KnownSet(
        _named("train-standard", "val"),
        {
            "filelist_places365-standard.tar": "35a0585fee1fa656440f3ab298f8479c",
            "filelist_places365-challenge.tar": "70a8307e459c3de41690a7c76c931734",
            "train_large_places365standard.tar": "67e186b496a84c929568076ed01a8aa1",
            "train_large_places365challenge.tar": "605f18e68e510c82b958664ea134545f",
            "val_large.tar": "9b71c4993ad89d2d8bcbdc4aef38042f",
            "test_large.tar": "41a4b6b724b1d2cd862fb3871ed59913",
            "train_256_places365standard.tar": "53ca1c756c3d1e7809517cc47c5561c5",
            "train_256_places365challenge.tar": "741915038a5e3471ec7332404dfb64ef",
            "val_256.tar": "e27b17d8d44f4af9a78502beb927f808",
            "test_256.tar": "f532f6ad7b582262a2ec8009075e186b",
        },
    ),
    "RenderedSST2": KnownSet(
        _named("train", "val", "test"),
        {
            "rendered-sst2.tgz": "2384d08e9dcfa4bd55b324e610496ee5",
        },
    ),
    "SEMEION": KnownSet(
        _WHOLE,
        {
            "semeion.data": "cb545d371d2ce14ec121470795a77432",
        },
    ),
    "StanfordCars": KnownSet(
        _named("train", "test"),
        {},
    ),
    "STL10": KnownSet(
        _named("train", "test"),
        {
            "stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb",
        },
    ),
    "SUN397": KnownSet(
        _WHOLE,
        {
            "SUN397.tar.gz": "8ca2778205c41d23104230ba66911c7a",
        },
    ),
    "SVHN": KnownSet(
        _named("train", "test"),
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
        },
    ),
}
