"""Write the mean activation of every channel of one layer, for many pictures, with Ray Data.

PICTURES and VECTORS are folders or buckets (s3://bucket/folder). Each file in PICTURES and its
subfolders becomes a row: `path`, `vector` (the mean of each channel, after ReLU6) and `error` (why
there is no vector). Names in PICTURES that begin with "." or "_" are skipped. When the job is done,
read all rows with pandas.read_parquet(VECTORS).

If a worker dies, Ray repeats its work. If you stop the job, the same command does the rest, as
VECTORS.done says which paths are done. To start over, or for another layer, delete both.

Run Visualize.py once before, so that the weights are in Keras's cache. Several machines each need
them, the same packages, and PICTURES and VECTORS on a shared disk or in a bucket. Set RAY_ADDRESS
and, perhaps, RAY_AUTH_MODE=token: https://docs.ray.io/en/latest/cluster/getting-started.html
"""

import io
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import Model


class Vectors:
    """A worker: it loads the network once, then turns each file into a row of the result."""

    def __init__(self, layer: str) -> None:
        self.model = Model.Simple_Model(after="relu")
        self.index = Model.LAYERS.index(layer)

    def __call__(self, row: dict) -> dict:
        picture = io.BytesIO(row["bytes"])
        picture.name = row["path"]  # so that an error names it
        try:
            activations = self.model.get_feature_map(picture)[self.index]  # (1, H, W, C)
        except (OSError, ValueError) as error:
            return {"path": row["path"], "vector": None, "error": str(error)}
        vector = activations.mean(axis=(0, 1, 2)).tolist()  # an array does not mix with None
        return {"path": row["path"], "vector": vector, "error": None}


def compute(pictures: str, vectors: str, layer: str) -> None:
    import pyarrow as pa
    import ray
    from ray.data.checkpoint import CheckpointConfig

    threads = {"TF_NUM_INTRAOP_THREADS": "1"}  # because Ray starts a worker for each core
    ray.init(runtime_env={"py_modules": [Model], "env_vars": threads})  # Ray sends them Model.py
    done = CheckpointConfig("path", f"{vectors}.done", delete_checkpoint_on_success=False)
    ray.data.DataContext.get_current().checkpoint_config = done
    # Reading and writing mostly wait, so they leave the cores to the workers.
    files = ray.data.read_binary_files(pictures, include_paths=True, num_cpus=0, concurrency=2)
    rows = files.map(Vectors, fn_constructor_args=(layer,), num_cpus=1)
    schema = pa.schema({"path": "string", "vector": pa.list_(pa.float32()), "error": "string"})
    rows.write_parquet(vectors, schema=schema, ray_remote_args={"num_cpus": 0}, concurrency=2)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES")
    parser.add_argument("vectors", metavar="VECTORS")
    parser.add_argument("--layer", default="conv_pw_12", help="conv_dw_1 to conv_pw_13")
    args = parser.parse_args()
    names = (args.pictures, args.vectors)
    pictures, vectors = (name if "://" in name else os.path.abspath(name) for name in names)
    if args.layer not in Model.LAYERS:
        sys.exit(f"no layer {args.layer!r}: choose {', '.join(Model.LAYERS)}")
    if "://" not in pictures and not any(files for _, _, files in os.walk(pictures)):
        sys.exit(f"no such folder, or no file in it: {pictures!r}")
    try:
        compute(pictures, vectors, args.layer)
    except ImportError as error:
        sys.exit(f'cannot load Ray Data ({error}): type pip install -U "ray[data]"')
    except (OSError, ValueError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "stopped")


if __name__ == "__main__":
    main()
