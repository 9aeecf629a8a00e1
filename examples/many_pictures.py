"""Write the mean activation of every channel of one layer, for many pictures, with Ray Data.

PICTURES and VECTORS are folders or buckets (s3://bucket/folder). Each picture in PICTURES and its
subfolders gets a row in VECTORS/LAYER: `path`, and `vector`, the mean of each channel after ReLU6.
Rows are saved by the thousand. At the end you read which pictures failed, and why. The same command
tries those again, and goes on with a job that was stopped. If a worker dies, Ray repeats its work.

First, pip install "ray[data]" tqdm. Keras downloads the weights into its folder; if it cannot write
there, give --weights. On a cluster (set RAY_ADDRESS), all machines need all this, and both folders.
"""

import io
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

sys.path.insert(0, f"{os.path.dirname(__file__)}/..")
import Model
from Visualize import load_tensorflow


class Vectors:
    """A worker: it loads the network once, then turns each path into a row."""

    def __init__(self, disk, weights: str, layer: str) -> None:
        self.disk = disk
        self.layer = layer
        self.model = Model.Simple_Model(weights, "relu", [layer])

    def __call__(self, item: dict) -> dict:
        path = item["item"]
        row = {"path": path, "vector": None, "error": None}
        try:
            with self.disk.open_input_file(path) as file:
                picture = io.BytesIO(file.read())
            maps = self.model.get_feature_map(picture)
        except OSError as error:
            row["error"] = f"{path}: {error.__cause__ or error}"
        else:
            activations = maps[self.layer]  # (1, H, W, C)
            means = activations.mean(axis=(0, 1, 2), dtype=float)  # float32 sums lose digits
            row["vector"] = means.tolist()
        return row


def compute(pictures: str, vectors: str, weights: str, layer: str) -> list:
    """Write the rows that are missing; return why some cannot be written."""
    import ray
    from pyarrow import float32, fs, list_, parquet, schema

    disk, folder = fs.FileSystem.from_uri(pictures)
    files = disk.get_file_info(fs.FileSelector(folder, recursive=True))
    paths = {file.path for file in files if file.is_file}
    columns = schema({"path": "string", "vector": list_(float32())})
    try:
        rows = parquet.read_table(vectors, columns=["path"], schema=columns)
        done = rows["path"].to_pylist()
    except FileNotFoundError:  # the first run
        done = []
    left = sorted(paths.difference(done))
    print(f"{len(paths)} files, {len(left)} of them not yet in {vectors!r}", flush=True)
    if not left:
        return []
    load_tensorflow()
    Vectors(disk, weights, layer)  # so that missing weights are told before Ray starts
    one_thread = {"TF_NUM_INTRAOP_THREADS": "1"}  # because Ray starts a worker for each core
    ray.init(runtime_env={"py_modules": [Model], "env_vars": one_thread})
    items = ray.data.from_items(left, override_num_blocks=len(left) // 100 + 1)
    results = items.map(Vectors, fn_constructor_args=(disk, weights, layer))
    errors = []
    for batch in results.iter_batches(batch_size=1000, batch_format="pyarrow"):
        errors += batch["error"].drop_null().to_pylist()
        rows = batch.select(["path", "vector"]).drop_null()
        parquet.write_to_dataset(rows.cast(columns), vectors)
    return errors


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES")
    parser.add_argument("vectors", metavar="VECTORS")
    parser.add_argument("--layer", default="conv_pw_12")
    parser.add_argument("--weights", default="imagenet", metavar="FILE")
    args = parser.parse_args()
    names = [args.pictures, f"{args.vectors}/{args.layer}"]
    pictures, vectors = (name if "://" in name else os.path.abspath(name) for name in names)
    try:
        errors = compute(pictures, vectors, args.weights, args.layer)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{error}\nFor weights of your own, give --weights FILE.")
    except KeyboardInterrupt:
        sys.exit("stopped")
    for error in errors:
        print(error, file=sys.stderr)
    print(f"{len(errors)} pictures failed")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
