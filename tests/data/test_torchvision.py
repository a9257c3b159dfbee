"""Named data sets, from files laid out and served as their publishers do."""

import functools
import gzip
import hashlib
import http.server
import json
import multiprocessing
import pickle
import struct
import threading

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import utils

from tests.helpers import compose
from tlexp.config.load import CONF
from tlexp.data.images.sources import ImageFiles, PixelArray
from tlexp.data.readers.torchvision import torchvision_set
from tlexp.errors import UsageError
from tlexp.runs.domains import read_domain

BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def idx(array):
    """An array as MNIST's publishers write it."""
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A server with Fashion-MNIST's four files, ten pictures in each part, that counts what it is asked for."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for part in ("train", "t10k"):
        shades = np.arange(10, dtype=np.uint8)
        for kind, array in (("images-idx3", np.tile(shades[:, None, None], (1, 28, 28))), ("labels-idx1", shades)):
            file = f"{part}-{kind}-ubyte.gz"
            (served / file).write_bytes(gzip.compress(idx(array)))
            resources.append((file, hashlib.md5((served / file).read_bytes()).hexdigest()))
    asked = tmp_path / "asked"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *args):
            with asked.open("a") as file:
                file.write(form % args + "\n")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    yield lambda: [line for line in asked.read_text().splitlines() if "GET" in line] if asked.exists() else []
    server.shutdown()
    server.server_close()


def clothes(folder, **options):
    return torchvision_set("FashionMNIST", "fashion", str(folder), BY_FLAG, **options)


def test_one_process_downloads_and_the_others_wait(tmp_path, shop):
    clothes(tmp_path / "alone")
    alone = len(shop())
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()

    def read():
        samples = clothes(tmp_path / "fashion")
        queue.put((len(samples.labels), int(samples.inputs.pixels.sum()), samples.classes[0]))

    processes = [fork.Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    answers = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert answers == {(20, 2 * 28 * 28 * 45, "Ankle boot")}
    assert len(shop()) == 2 * alone, "as much as for one, whoever came first"
    assert not (tmp_path / "fashion.part").exists()


def test_a_download_that_was_killed_is_not_taken_for_complete(tmp_path, shop):
    raw = tmp_path / "fashion.part/FashionMNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half")
    assert len(clothes(tmp_path / "fashion").labels) == 20


def test_the_published_splits_are_kept(tmp_path, shop):
    clothes(tmp_path / "fashion")
    chosen = ("data=named", "dataset@data.target=fashion_mnist", f"data.target.folder={tmp_path / 'fashion'}")
    samples = clothes(tmp_path / "fashion")
    assert sorted(samples.given) == ["test", "train"]
    assert samples.given["test"].tolist() == list(range(10, 20))
    with pytest.raises(UsageError, match=r"data.shots=2: a class has only 1 labels outside the test split"):
        read_domain(compose(*chosen, "init=random", "data.shots=2"), "target")


def test_what_cannot_be_downloaded_is_one_line(tmp_path, shop, monkeypatch):
    with pytest.raises(UsageError, match=r"folder=.*fashion: no such folder, and download=false"):
        clothes(tmp_path / "fashion", download=False)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(
        UsageError, match=r"FashionMNIST: is not in .*fashion and cannot be downloaded \(.*\); check"
    ) as e:
        clothes(tmp_path / "fashion")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("fashion*.part"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"folder=.*empty: holds no FashionMNIST in torchvision's layout"):
        clothes(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"dataset=Nonsense: torchvision has no data set of that name"):
        torchvision_set("Nonsense", "n", str(tmp_path), BY_FLAG)


def signs(root):
    for number in range(3):
        picture(root / f"gtsrb/GTSRB/Training/{number:05d}/a.ppm", number)
        picture(root / f"gtsrb/GTSRB/Final_Test/Images/{number}.ppm", number)
    rows = "".join(f"{number}.ppm;8;8;0;0;8;8;{number}\n" for number in range(3))
    (root / "gtsrb/GT-final_test.csv").write_text("Filename;Width;Height;X1;Y1;X2;Y2;ClassId\n" + rows)


def land(root):
    for name in ("Forest", "River"):
        for number in range(3):
            picture(root / f"eurosat/2750/{name}/{name}_{number}.jpg")


def textures(root):
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        lines = [f"{name}/{part}.jpg" for name in ("dotted", "woven")]
        for line in lines:
            picture(folder / "images" / line)
        (folder / f"labels/{part}1.txt").write_text("\n".join(lines) + "\n")


def breeds(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part in ("trainval", "test"):
        names = [("great_pyrenees", 1), ("Abyssinian", 2)]
        lines = [f"{name}_{part} {number} 1 1" for name, number in names]
        for name, _ in names:
            picture(folder / f"images/{name}_{part}.jpg")
        (folder / f"annotations/{part}.txt").write_text("\n".join(lines) + "\n")


def flowers(root):
    folder = root / "flowers-102"
    for number in range(1, 7):
        picture(folder / f"jpg/image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(folder / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([5, 6])})


def photographs(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {"data": np.full((2, 3072), 7, np.uint8), "labels": [0, 1]}
        (folder / file).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", *"cdefghij"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def numbers(root):
    root.mkdir(parents=True)
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.array([1, 10, 1, 10])})


@pytest.mark.parametrize(
    ("name", "make", "sizes", "classes", "inputs"),
    [
        ("gtsrb", signs, {"train": 3, "test": 3}, ("0", "1", "2"), ImageFiles),
        ("eurosat", land, {}, ("Forest", "River"), ImageFiles),
        ("dtd", textures, {"train": 2, "val": 2, "test": 2}, ("dotted", "woven"), ImageFiles),
        ("pets", breeds, {"train": 2, "test": 2}, ("Abyssinian", "Great Pyrenees"), ImageFiles),
        ("flowers102", flowers, {"train": 2, "val": 2, "test": 2}, None, ImageFiles),
        ("cifar10", photographs, {"train": 10, "test": 2}, ("airplane", "automobile"), PixelArray),
        ("svhn", numbers, {"train": 4, "test": 4}, ("0", "1"), PixelArray),
    ],
)
def test_each_layout_is_read_without_decoding_an_image(tmp_path, monkeypatch, name, make, sizes, classes, inputs):
    make(tmp_path / "data")
    for module in (datasets.flowers102, datasets.cifar, datasets.svhn, utils):
        monkeypatch.setattr(module, "check_integrity", lambda *args: True)
    monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("an image was decoded"))
    options = compose("data=named", f"dataset@data.target={name}", "init=random", root=tmp_path).data.target
    assert options["folder"] == str(tmp_path / "data" / name)
    options = {key: value for key, value in options.items() if key != "_target_"} | {"folder": str(tmp_path / "data")}
    samples = torchvision_set(**options, download=False) if "download" not in options else torchvision_set(**options)
    assert {part: len(indices) for part, indices in samples.given.items()} == sizes
    assert isinstance(samples.inputs, inputs)
    if classes:
        assert samples.classes == classes
    if inputs is PixelArray:
        assert samples.inputs.pixels.shape[1:] == (32, 32, 3)


def test_every_named_set_is_one_that_torchvision_has():
    named = [path for path in (CONF / "dataset").glob("*.yaml") if "torchvision_set" in path.read_text()]
    assert len(named) >= 15
    for path in named:
        options = compose("data=named", f"dataset@data.target={path.stem}", "init=random").data.target
        assert options["dataset"] in datasets.__all__
        assert options["name"] == path.stem
        json.dumps(options)
