"""Write the mean activation of every channel of one layer, for many pictures, with Ray Data.

PICTURES and VECTORS are folders or buckets (s3://bucket/folder). Each file in PICTURES and its
subfolders becomes a row: `path`, `vector` (the mean of each channel, after ReLU6) and `error` (why
there is none). If a worker dies, Ray repeats its work. If you stop the job, the same command does
the rest, as VECTORS.done says which paths are done. For another layer, delete both.

Run Visualize.py once before, on every machine, so that the weights are in Keras's cache.
"""

import io
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import Model


class Vectors:
    """A worker: it loads the network up to the layer, then turns batches of files into rows."""

    def __init__(self, layer: str) -> None:
        import keras

        part = Model.Simple_Model(after="relu", layers=[layer]).model
        self.model = keras.Model(part.input, keras.ops.mean(part.outputs[0], axis=(1, 2)))
        self.preprocess = keras.applications.mobilenet.preprocess_input

    def __call__(self, files: dict) -> dict:
        errors = [None] * len(files["path"])
        pixels = np.zeros((len(errors), 224, 224, 3), np.float32)
        for place, content in enumerate(files["bytes"]):
            picture = io.BytesIO(content)
            try:
                pixels[place] = np.asarray(Model.read_picture(picture))
            except OSError as error:  # it names the BytesIO
                errors[place] = str(error).replace(str(picture), files["path"][place])
        means = self.model.predict_on_batch(self.preprocess(pixels)).tolist()
        vectors = [None if error else mean for error, mean in zip(errors, means)]
        return {"path": files["path"], "vector": vectors, "error": errors}


def compute(pictures: str, vectors: str, layer: str) -> None:
    import pyarrow as pa
    import ray
    from ray.data.checkpoint import CheckpointConfig

    threads = {"TF_NUM_INTRAOP_THREADS": "1"}  # because Ray starts a worker for each core
    ray.init(runtime_env={"py_modules": [Model], "env_vars": threads})
    done = CheckpointConfig("path", f"{vectors}.done", delete_checkpoint_on_success=False)
    ray.data.DataContext.get_current().checkpoint_config = done
    # Reading and writing mostly wait, so they leave the cores to the workers.
    files = ray.data.read_binary_files(pictures, include_paths=True, num_cpus=0, concurrency=2)
    rows = files.map_batches(Vectors, batch_size=8, fn_constructor_args=(layer,), num_cpus=1)
    schema = pa.schema({"path": "string", "vector": pa.list_(pa.float32()), "error": "string"})
    rows.write_parquet(vectors, schema=schema, ray_remote_args={"num_cpus": 0}, concurrency=1)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES")
    parser.add_argument("vectors", metavar="VECTORS")
    parser.add_argument("--layer", default="conv_pw_12", choices=Model.LAYERS, metavar="LAYER")
    args = parser.parse_args()
    names = (args.pictures, args.vectors)
    pictures, vectors = (name if "://" in name else os.path.abspath(name) for name in names)
    files = (names for *_, names in os.walk(pictures, followlinks=True))
    if "://" not in pictures and not any(files):
        sys.exit(f"no such folder, or no file in it: {pictures!r}")
    try:
        compute(pictures, vectors, args.layer)
    except (ImportError, OSError, ValueError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "stopped")


if __name__ == "__main__":
    main()
