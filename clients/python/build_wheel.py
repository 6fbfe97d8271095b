"""Builds the wheels: `weir_stream` with the engine that cargo built, and `weir_stream_models` with the shipped models.

    python build_wheel.py --version 0.1.0 --engine lib_engine.so --models DIR --out DIR

A wheel is a zip file with a list of hashes (PEP 427), so no build tool is needed. All files have the same date, so that equal content gives
an equal wheel.
"""

import argparse
import base64
import hashlib
import platform
import re
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: The wheel runs on every Python from this one on: the engine uses the stable ABI.
PYTHON_TAG = "cp38-abi3"
MODELS_INIT = '''"""The models that ship with Weir."""

from pathlib import Path


def path() -> Path:
    """The folder with a folder for each model."""
    return Path(__file__).resolve().parent / "models"
'''


def platform_tag(engine):
    """The platform tag with the oldest glibc that has every function of the engine."""
    versions = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", engine)]
    if not versions:
        raise SystemExit("the engine has no symbols of glibc; it was not built for Linux")
    return f"manylinux_2_{max(max(versions), 17)}_{platform.machine()}"


def metadata(project, version, readme, extras):
    """The file METADATA."""
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {version}", f"Summary: {project['description']}"]
    lines += [f"Requires-Python: {project['requires-python']}", f"License-Expression: {project['license']}"]
    lines.append("License-File: LICENSE")
    if "keywords" in project:
        lines.append(f"Keywords: {','.join(project['keywords'])}")
    lines += [f"Classifier: {classifier}" for classifier in project.get("classifiers", [])]
    for extra, requirements in extras.items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    return "\n".join([*lines, "Description-Content-Type: text/markdown", "", readme]).encode()


def write(out, project, version, tag, files, extras, readme):
    """Writes a wheel from pairs of a name and its bytes or path."""
    name = project["name"].replace("-", "_")
    info = f"{name}-{version}.dist-info"
    is_pure = "true" if tag.endswith("-any") else "false"
    wheel = f"Wheel-Version: 1.0\nGenerator: weir\nRoot-Is-Purelib: {is_pure}\nTag: {tag}\n"
    files = [
        *files,
        (f"{info}/METADATA", metadata(project, version, readme, extras)),
        (f"{info}/WHEEL", wheel.encode()),
        (f"{info}/licenses/LICENSE", HERE.parents[1] / "LICENSE"),
    ]
    out.mkdir(parents=True, exist_ok=True)
    path, scratch = out / f"{name}-{version}-{tag}.whl", out / f".{name}.new"
    record = []
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file_name, content in files:
            data = content if isinstance(content, bytes) else content.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file_name},sha256={digest},{len(data)}")
            entry = zipfile.ZipInfo(file_name, (2020, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
        record.append(f"{info}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", (2020, 1, 1, 0, 0, 0)), "\n".join(record) + "\n")
    for old in out.glob(f"{name}-*.whl"):
        old.unlink()
    scratch.rename(path)
    print(path)


def main():
    """Builds the wheels of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", required=True)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    version = arguments.version
    if arguments.engine:
        engine = arguments.engine.read_bytes()
        sources = HERE / "python"
        paths = sorted(path for path in sources.rglob("*") if path.suffix in (".py", ".pyi", ".typed"))
        files = [(path.relative_to(sources).as_posix(), path) for path in paths]
        files.append(("weir_stream/_engine.abi3.so", engine))
        extras = {
            extra: [f"{one}=={version}" if one == "weir-stream-models" else one for one in requirements]
            for extra, requirements in project["optional-dependencies"].items()
        }
        tag = f"{PYTHON_TAG}-{platform_tag(engine)}"
        write(arguments.out, project, version, tag, files, extras, (HERE / "README.md").read_text())
    if arguments.models:
        paths = sorted(path for path in arguments.models.rglob("*") if path.is_file())
        files = [(f"weir_stream_models/models/{path.relative_to(arguments.models).as_posix()}", path) for path in paths]
        files += [("weir_stream_models/__init__.py", MODELS_INIT.encode()), ("weir_stream_models/py.typed", b"")]
        models = {
            "name": "weir-stream-models",
            "description": "The models of weir-stream: sentiment, entities and sentence embeddings.",
            "requires-python": project["requires-python"],
            "license": project["license"],
        }
        readme = "The models that `weir_stream` uses by default. Each folder has its model card.\n"
        write(arguments.out, models, version, "py3-none-any", files, {}, readme)


if __name__ == "__main__":
    main()
