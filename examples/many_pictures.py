"""Write the mean activation of every channel of one layer, for many pictures, with Ray Data.

PICTURES and VECTORS are folders or buckets (s3://bucket/folder). Each file in PICTURES and its
subfolders becomes a row in VECTORS/LAYER: `path`, `vector` (the mean of each channel, after ReLU6)
and `error` (why there is none). Rows are saved by the thousand. If a worker dies, Ray repeats its
work. If you stop the job, the same command goes on. First, pip install "ray[data]" tqdm, and run
Visualize.py once, so that Keras has the weights. On a cluster (set RAY_ADDRESS), each machine needs
all that, and both folders.
"""

import io
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import Model


class Vectors:
    """A worker: it loads the network once, then turns each path into a row."""

    def __init__(self, layer: str, disk) -> None:
        self.model = Model.Simple_Model(after="relu", layers=[layer])
        self.disk = disk

    def __call__(self, file: dict) -> dict:
        path, picture = file["item"], io.BytesIO()
        try:
            with self.disk.open_input_file(path) as content:
                picture.write(content.read())  # Pillow rewinds it
            (activations,) = self.model.get_feature_map(picture)  # (1, H, W, C)
        except OSError as error:  # it may name the BytesIO
            return {"path": path, "vector": None, "error": str(error).replace(str(picture), path)}
        means = activations.mean(axis=(0, 1, 2), dtype=float)  # float32 sums lose digits
        return {"path": path, "vector": means.tolist(), "error": None}


def compute(pictures: str, vectors: str, layer: str) -> None:
    import ray
    from pyarrow import float32, fs, list_, parquet, schema

    disk, folder = fs.FileSystem.from_uri(pictures)
    found = disk.get_file_info(fs.FileSelector(folder, recursive=True))
    paths = {file.path for file in found if file.is_file}
    row_schema = schema({"path": "string", "vector": list_(float32()), "error": "string"})
    try:
        done = parquet.read_table(vectors, columns=["path"], schema=row_schema)  # it may be empty
        left = sorted(paths.difference(done["path"].to_pylist()))
    except FileNotFoundError:  # the first run
        left = sorted(paths)
    print(f"{len(paths)} files in {pictures!r}, {len(left)} of them not yet in {vectors!r}")
    if not left:
        return
    threads = {"TF_NUM_INTRAOP_THREADS": "1"}  # because Ray starts a worker for each core
    ray.init(runtime_env={"py_modules": [Model], "env_vars": threads})
    files = ray.data.from_items(left, override_num_blocks=len(left) // 100 + 1)
    rows = files.map(Vectors, fn_constructor_args=(layer, disk))
    no_core = {"num_cpus": 0}  # writing mostly waits, so it leaves the cores to the workers
    rows.write_parquet(vectors, schema=row_schema, min_rows_per_file=1000, ray_remote_args=no_core)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES")
    parser.add_argument("vectors", metavar="VECTORS")
    parser.add_argument("--layer", default="conv_pw_12", help="the layer (conv_pw_12)")
    args = parser.parse_args()
    if args.layer not in Model.LAYERS:
        sys.exit(f"no layer {args.layer!r}: choose from conv_dw_1 to conv_pw_13")
    names = (args.pictures, f"{args.vectors}/{args.layer}")
    pictures, vectors = (name if "://" in name else os.path.abspath(name) for name in names)
    try:
        compute(pictures, vectors, args.layer)
    except (ImportError, OSError, ValueError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "stopped")


if __name__ == "__main__":
    main()
