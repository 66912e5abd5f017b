"""Time random batches of ten slices from our HDF5 layout and from that of the authors' code.

    PYTHONPATH=. python benchmarks/bench_h5.py [--slices N] [--contrasts C] [--folder DIR]

The same generated slices of 160 x 160 pixels are written with our StoreWriter (float16, uint8, whole slices in chunks
of 256 KiB) and as the authors' generate_h5_pretraining.py writes them: images float64 in chunks that h5py chooses,
constraint maps int64 in a single chunk over all slices (0.95 GB); and once more with float64 images that lie
contiguously, the best that float64 can do. Then the same random rows are read from all of them, the sides taking
turns: ours through SliceStore (float32 images, int32 maps), theirs with `dataset[sorted rows]` and row by row, as their
loader does; their numbers stay 64 bits wide. Warm: rows that were read just before. Cold: the file's pages are dropped
first (on a virtual disk the host may still hold them); the file is open already on both sides. Both sides must return
equal values, up to float16. Beside each time stands its floor, the bytes to move at the bandwidth of a plain sequential
read of the same file in the same state; the JSON has the bytes that came from the disk too.

Goals, against `dataset[sorted rows]`: at least 10 times faster for maps, 3 times for images; our file at most a third
of theirs. Row by row, HDF5 reads of the 1-GB chunk no more than the row, because a chunk without compression that
exceeds its cache is not read as a whole; there bytes allow 8 times (int64 against uint8) and 4 times for contiguous
images, and no goal is set. Needs 6 GB of disk, deleted afterwards; takes about two minutes. Writes
benchmarks/output/h5.json; exit code 1 when a goal is missed.
"""

import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of

SIDE, BATCH, CLUSTERS = 160, 10, 20
SLICES_PER_SUBJECT = 155
KINDS = {"maps": 10, "images": 3, "images_contiguous": 3}  # how many times faster we are to be


def main(arguments=None):
    parser = parser_of(__doc__, "h5")
    parser.add_argument("--slices", type=int, default=4650, metavar="N", help="slices (default: 30 subjects of 155)")
    parser.add_argument("--contrasts", type=int, default=2, metavar="C", help="channels of the images (default: 2)")
    parser.add_argument("--batches", type=int, default=9, metavar="N", help="batches of their side (default: 9)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args(arguments)
    pixels = options.slices * SIDE * SIDE
    needed = pixels * (8 * (2 * options.contrasts + 1) + 2 * options.contrasts + 1)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_h5_") as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.1 * needed:
            print(
                f"{folder}: {free / 1e9:.1f} GB free, {1.1 * needed / 1e9:.1f} needed; give another --folder",
                file=sys.stderr,
            )
            return 2
        folder = Path(folder)
        seconds = write_files(folder, options.slices, options.contrasts)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        figures = {"written_s": seconds, "file_bytes": sizes, **measure(folder, options)}
    figures["file_ratio"] = sizes["ours.h5"] / (sizes["images.h5"] + sizes["maps.h5"])
    goals = goals_of(figures)
    print_table(figures)
    sizes = {"slices": options.slices, "shape": [SIDE, SIDE, options.contrasts], "batch": BATCH}
    return finish(options.output, sizes={**sizes, "batches": options.batches}, figures=figures, goals=goals)


def write_files(folder, slices, contrasts):
    """Write `ours.h5` and theirs, `images.h5`, `images_contiguous.h5`, `maps.h5`; return the seconds of each."""
    import h5py

    from data.geometry import SliceGrid
    from data.store.store import StoreWriter, SubjectSlices

    plane = (SIDE, SIDE)
    forms = {
        "images": ("img", contrasts, "float64", {"chunks": True, "maxshape": (None, *plane, contrasts)}),
        "images_contiguous": ("img", contrasts, "float64", {}),
        "maps": ("param", 1, "int64", {"chunks": (slices, *plane, 1), "maxshape": (None, *plane, 1)}),
    }
    # A chunk of theirs holds a piece of some 300 slices: a large cache, or each would be read and written many times.
    files = {name: h5py.File(folder / f"{name}.h5", "w", rdcc_nbytes=2**29, rdcc_nslots=100_003) for name in forms}
    datasets = {
        name: files[name].create_dataset(key, (slices, *plane, channels), dtype, **layout)
        for name, (key, channels, dtype, layout) in forms.items()
    }
    seconds = dict.fromkeys(("ours", *forms), 0.0)
    names, attributes = [f"contrast_{number}" for number in range(contrasts)], {"clusters": CLUSTERS, "labels": ["all"]}
    form = {"contrasts": names, "image_size": plane, "attributes": attributes, "has_labels": True}
    with StoreWriter(folder / "ours.h5", **form) as store:
        for start in range(0, slices, SLICES_PER_SUBJECT):
            images, maps = synthetic_slices(start, min(SLICES_PER_SUBJECT, slices - start), contrasts)
            grid = SliceGrid((*plane, len(maps)), np.eye(4), None, plane)
            labels = (maps[..., 0] == 3).astype(np.uint8)
            subject = SubjectSlices(str(start), grid, np.arange(len(maps)), images, {None: maps[..., 0]}, labels)
            seconds["ours"] += timed(store.add, subject)
            for name, dataset in datasets.items():
                values = maps if name == "maps" else images
                seconds[name] += timed(dataset.__setitem__, slice(start, start + len(maps)), values)
    for name, file in files.items():
        seconds[name] += timed(file.close)
    return seconds


def synthetic_slices(seed, count, contrasts):
    """Return smooth images with noise, `(count, H, W, C)` float64 in [0, 1], and maps of 20 classes in a disc."""
    rng, places = np.random.default_rng(seed), np.linspace(-1, 1, SIDE)
    x, y, z = places[:, None], places[None, :], np.arange(count)[:, None, None] / 20
    smooth = [sum(np.sin(a * x + b * y + z + c) for a, b, c in rng.uniform(1, 6, (4, 3))) for _ in range(contrasts)]
    disc = x**2 + y**2 < 0.8
    images = np.stack(smooth, axis=-1) / 8 + 0.5 + rng.normal(0, 0.02, (count, SIDE, SIDE, contrasts))
    maps = np.where(disc, 1 + (smooth[0] + 4) * (CLUSTERS / 8), 0).astype(np.int64).clip(0, CLUSTERS)
    return np.where(disc[..., None], images.clip(0, 1), 0), maps[..., None]


def measure(folder, options):
    """Read the same random rows on both sides, in turns; return times, ratios, floors and bandwidths."""
    generator = np.random.default_rng(0)
    batches = [generator.choice(options.slices, BATCH, replace=False) for _ in range(options.batches)]
    ours, theirs = Ours(folder / "ours.h5"), {name: Theirs(folder / f"{name}.h5") for name in KINDS}
    figures = {"bandwidth_gb_per_s": {path.stem: bandwidths(path) for path in sorted(folder.iterdir())}}
    for kind in KINDS:
        other = theirs[kind]
        sides = {
            "ours": (ours, lambda rows, kind=kind: ours.read(kind, rows)),
            "theirs_sorted": (other, other.read_sorted),
            "theirs_rows": (other, other.read_rows),
        }
        check_equal(sides, batches[0])
        figures[kind] = {}
        for state in ("warm", "cold"):
            found = time_sides(sides, batches, is_cold=state == "cold")
            bytes_moved = {"ours": ours.bytes_of(kind), "theirs_rows": other.bytes_of(batches, state == "cold")}
            for name, moved in bytes_moved.items():
                bandwidth = figures["bandwidth_gb_per_s"]["ours" if name == "ours" else kind][state]
                found[name] |= {"bytes": moved, "floor_ms": moved / bandwidth / 1e6}
            for name in ("theirs_rows", "theirs_sorted"):
                found[f"{name}_over_ours"] = found[name]["ms"] / found["ours"]["ms"]
            figures[kind][state] = found
    figures["whole_batch"] = whole_batch(ours, batches)
    return figures


class Ours:
    """Our file, read as training reads it."""

    def __init__(self, path):
        from data.store.store import SliceStore

        self.path, self.store = path, SliceStore(path)

    def read(self, kind, rows):
        return self.store.constraint_maps(rows) if kind == "maps" else self.store.images(rows=rows)

    def bytes_of(self, kind):
        return BATCH * SIDE * SIDE * (1 if kind == "maps" else 2 * len(self.store.contrasts))


class Theirs:
    """One file in the layout of the authors' code, read as their loader does: numbers stay as wide as they are."""

    def __init__(self, path):
        import h5py

        self.path, file = path, h5py.File(path)
        self.dataset = next(iter(file.values()))

    def read_rows(self, rows):
        batch = np.empty((len(rows), *self.dataset.shape[1:]), self.dataset.dtype)
        for place, row in enumerate(rows):
            batch[place] = self.dataset[row]
        return batch

    def read_sorted(self, rows):
        return self.dataset[np.sort(rows)]

    def bytes_of(self, batches, is_cold):
        """Bytes that HDF5 has to move per batch, on average: the rows alone, or every chunk that holds a piece of them.

        Cold, a chunk that several rows share comes from the disk once. A chunk without compression that exceeds the
        chunk cache is not read as a whole.
        """
        shape, chunks, width = self.dataset.shape, self.dataset.chunks, self.dataset.dtype.itemsize
        if chunks is None or np.prod(chunks) * width > self.dataset.file.id.get_access_plist().get_cache()[2]:
            return BATCH * int(np.prod(shape[1:])) * width
        pieces = np.prod([-(-length // size) for length, size in zip(shape[1:], chunks[1:], strict=True)])
        layers = np.mean([len(np.unique(rows // chunks[0])) for rows in batches]) if is_cold else BATCH
        return int(layers * pieces * np.prod(chunks) * width)


def check_equal(sides, rows):
    """Refuse to compare times of unequal values."""
    values = {name: np.squeeze(read(rows)) for name, (_, read) in sides.items()}
    expected = {"theirs_rows": values["ours"], "theirs_sorted": values["ours"][np.argsort(rows)]}
    for name, ours in expected.items():
        theirs = values[name].astype(np.float16).astype(ours.dtype)
        if not np.array_equal(ours, theirs):
            raise ValueError(f"{name}: differs from what our file holds")


def time_sides(sides, batches, is_cold):
    """Return the median milliseconds and bytes from the disk of each side, `{side: {"ms", "disk_bytes"}}`."""
    import statistics

    found = {name: ([], []) for name in sides}
    for number, rows in enumerate(batches):
        order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for name in order:
            side, read = sides[name]
            drop_pages(side.path) if is_cold else read(rows)
            gc.disable()
            before = bytes_from_disk()
            found[name][0].append(timed(read, rows))
            found[name][1].append(bytes_from_disk() - before)
            gc.enable()
    return {
        name: {"ms": 1000 * statistics.median(seconds), "disk_bytes": statistics.median(counts)}
        for name, (seconds, counts) in found.items()
    }


def whole_batch(ours, batches):
    """Return the milliseconds that images, maps and labels of a batch take together, and the first batch of all."""
    import statistics

    def read(store, rows):
        return store.images(rows=rows), store.constraint_maps(rows), store.labels(rows)

    def open_and_read(rows):
        return read(Ours(ours.path).store, rows)

    read(ours.store, batches[0])
    return {
        "warm_ms": 1000 * statistics.median(timed(read, ours.store, rows) for rows in batches * 5),
        "first_with_opening_ms": 1000 * statistics.median(timed(open_and_read, rows) for rows in batches),
    }


def bandwidths(path):
    """Return gigabytes per second of a plain sequential read of up to 512 MB, the best of three, `{"cold", "warm"}`."""
    found = {"cold": 0.0, "warm": 0.0}
    for state in ("cold", "warm") * 3:
        if state == "cold":
            drop_pages(path)
        with open(path, "rb", buffering=0) as file:
            block, size, started = bytearray(2**20), 0, time.perf_counter()
            while size < 2**29 and (count := file.readinto(block)):
                size += count
        found[state] = max(found[state], size / (time.perf_counter() - started) / 1e9)
    return found


def drop_pages(path):
    """Let the system forget what it holds of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk():
    """Return the bytes that the disk has delivered to this process, readahead included."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def timed(function, *arguments):
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def goals_of(figures):
    """Return the goals as `finish` wants them."""
    goals = {"file: ours / theirs": (figures["file_ratio"], "at most", 1 / 3)}
    for kind, bound in KINDS.items():
        for state in ("warm", "cold"):
            ratio = figures[kind][state]["theirs_sorted_over_ours"]
            goals[f"{kind.replace('_', ' ')}, {state}: theirs / ours"] = (ratio, "at least", bound)
    return goals


def print_table(figures):
    """Print every time with its floor, and how many times faster ours is."""
    columns = "ours", "(floor)", "sorted", "by row", "(floor)", "sorted/ours", "by row/ours"
    print(f"{'milliseconds per batch of ' + str(BATCH):<30}" + "".join(f"{column:>12}" for column in columns))
    for kind in KINDS:
        for state, found in figures[kind].items():
            ours, rows = found["ours"], found["theirs_rows"]
            numbers = [ours["ms"], ours["floor_ms"], found["theirs_sorted"]["ms"], rows["ms"], rows["floor_ms"]]
            numbers += [found[f"theirs_{way}_over_ours"] for way in ("sorted", "rows")]
            print(f"{kind.replace('_', ' ') + ', ' + state:<30}" + "".join(f"{number:>12.2f}" for number in numbers))
    together = figures["whole_batch"]
    print(f"ours, images, maps and labels together, warm: {together['warm_ms']:.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
