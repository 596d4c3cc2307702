"""Model files: read with errors that say what to do, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir  # noqa: TID251  the other side of the wall in graph.py: reading and streaming weights

from onnxq.customs import needs_stand_in, stand_in
from onnxq.errors import ModelError, OutputError, no_onnx, refuse_no_file, refuse_no_place, what_failed
from onnxq.graph import Graph, check_proto, normalize, tensor_bytes
from onnxq.graph.apart import SMALL_BYTES, put_back, read_apart, with_stubs, write_joined
from onnxq.graph.shelf import FileTensor, Shelf, from_file
from onnxq.inference import MOST_BODIES, check_fully, ranked
from onnxq.runtime import Loadable
from onnxq.scratch import Scratch, alone

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import onnx

    from onnxq.graph.apart import Bytes

EXTERNAL_DATA_BYTES = 1_900_000_000
"""A model with more weight bytes than this goes out with external data: protobuf ends at 2 GiB."""

SPILL_BYTES = 32_000_000
"""A model with more weight bytes than this is worked on from a temporary file instead of from memory."""


def load(path: str | os.PathLike[str]) -> Graph:
    """Read an ONNX file. Weights in external data are read when they are needed.

    Raises:
        ModelError: not found, not ONNX, truncated, or external data missing, cut short or outside the folder.
    """
    path = Path(path)
    proto, views = _read_proto(path)
    if proto.HasField("graph") and proto.graph.sparse_initializer:
        raise ModelError(f"{path} holds sparse weights", "Turn its sparse_initializer entries into dense ones first.")
    check_proto(proto, str(path))
    external = list(_external_tensors(proto.graph, views))
    folder = path.resolve().parent if path.is_symlink() and not external else path.parent
    for tensor in external:
        _check_external(tensor, path, folder)
    try:
        model = ir.from_proto(proto)
        del proto
        put_back(model, views)
        normalize(model, str(folder))
        for value in (v for part in model.graphs() for v in part.initializers.values()):
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = from_file(value.const_value)
        return Graph(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from error
    except Exception as error:  # whatever a malformed graph trips over in the library
        raise ModelError(
            f"{path} is not a valid ONNX model: {_innermost(error)}", "Copy the file again, or export it again."
        ) from error


def spill(graph: Graph) -> Graph:
    """Move the weights that lie in no file to a temporary one, which lives as long as the graph: memory holds none.

    What passes make later, in the graph or a copy of it, goes to such a file too. The graph given gives up its weights;
    copies of it keep theirs.
    """
    shelf = Shelf(graph._shelf)  # noqa: SLF001  what passes put on that stays there, and must outlive the graph
    for value in (v for part in graph.model.graphs() for v in part.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or isinstance(tensor, FileTensor):
            continue
        if tensor.nbytes > SMALL_BYTES:
            value.const_value = shelf.put(tensor, str(value.name))
    # A copy: onnx_ir's lists of inputs never forget a value that was in them, nor does the value its weight.
    return Graph(graph.model.clone(), shelf)


def weight_bytes(graph: Graph) -> int:
    """Bytes of all the main graph's weights."""
    return sum(v.const_value.nbytes for v in graph.weights.values() if v.const_value is not None)


def runnable(graph: Graph) -> Loadable | bytes:
    """The model as ONNX Runtime loads it; the graph is of no use any more.

    One of no more than `SPILL_BYTES` has its weights inside, of another see `for_runtime`.
    """
    if weight_bytes(graph) > SPILL_BYTES:
        return for_runtime(graph)
    outside = any(isinstance(v.const_value, ir.ExternalTensor) for v in graph.weights.values())
    proto = graph.to_proto() if outside else ir.to_proto(graph.model)  # what is read from files goes with its clone
    return bytes(proto.SerializeToString())


def for_runtime(graph: Graph) -> Loadable:
    """The model as ONNX Runtime loads it without a copy of its larger weights; the graph is of no use any more.

    Those in files of one folder, where most lie, it maps itself, one at a time; the others are given as arrays.
    """
    model = graph.model
    folder = _fullest_folder(model)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for part in model.graphs():
        for name, value in part.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or (folder and _folder_of(tensor) == folder):
                continue
            if part is model.graph and tensor.nbytes > SMALL_BYTES and np.dtype(tensor.dtype.numpy()).isbuiltin == 1:
                arrays[name] = np.ascontiguousarray(tensor.numpy())
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor("given", None, None, tensor.dtype, shape=shape, name=name)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.external_data.convert_tensors_from_external([tensor])[0]
    return Loadable(ir.to_proto(model).SerializeToString(), folder, arrays)


def _fullest_folder(model: ir.Model) -> Path | None:
    """The folder in whose files most bytes of the weights lie; None when all are in memory."""
    found: Counter[Path] = Counter()
    for tensor in (v.const_value for part in model.graphs() for v in part.initializers.values()):
        if tensor is not None and (folder := _folder_of(tensor)) is not None:
            found[folder] += tensor.nbytes
    return found.most_common(1)[0][0] if found else None


def _folder_of(tensor: ir.TensorProtocol) -> Path | None:
    return Path(tensor.base_dir) if isinstance(tensor, ir.ExternalTensor) else None


def data_files(graph: Graph) -> set[Path]:
    """Files outside the model that its weights are still to be read from."""
    tensors = (v.const_value for part in graph.model.graphs() for v in part.initializers.values())
    return {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}


def model_bytes(path: Path) -> int:
    """Bytes of a model file and of the external data it names."""
    proto, views = _read_proto(path)
    names = {e.value for t in _external_tensors(proto.graph, views) for e in t.external_data if e.key == "location"}
    sizes: list[int] = [(path.parent / name).stat().st_size for name in names]
    return path.stat().st_size + sum(sizes)


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    check: bool = False,
    external_bytes: int = EXTERNAL_DATA_BYTES,
    texts: Mapping[Path, str] | None = None,
) -> list[Path]:
    """Write the model, whole or not at all; return its files, the model first.

    With more than `external_bytes` of weights they go beside it into `<name>.<digest>.data`; the digest keeps an
    older model of the same name readable until the new one takes its place. `texts` are files of the same folder that
    go with the model. Of two runs that write one output at once, the later one's files take the place of all of the
    earlier one's.

    Raises:
        ModelError: with `check`, onnx.checker refuses the model.
        OutputError: the folder or file cannot be written. An existing output is then as it was.
    """
    path = Path(path)
    with _output_errors(path), Scratch(path.parent) as aside:
        refuse_no_place(path)
        target, written = aside / path.name, [path]
        if weight_bytes(graph) <= external_bytes:
            write_joined(graph.model, target)
        else:
            written.append(path.parent / f"{path.name}.{graph.digest()[:12]}.data")
            _write(graph, target, written[1].name)
        if check:
            _check(graph, target)
        for text_file, text in (texts or {}).items():
            (aside / text_file.name).write_text(text, encoding="utf-8")
        with alone(path.parent):
            _move(aside, [*reversed(written), *(texts or {})])
            _drop_stale_data(path, keep={*written, *data_files(graph)})
    return written


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file aside, then move it into place: whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with _output_errors(path), Scratch(path.parent) as aside:
        refuse_no_place(path)
        target = aside / path.name
        write(target)
        target.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_aside(path, lambda target: target.write_text(text, encoding="utf-8"))


def check_writable(path: Path, *sources: Path) -> None:
    """Fail before the work, not after it.

    Raises:
        OutputError: the output would replace one of the sources, or its folder is missing or not writable.
    """
    with _output_errors(path):
        there = path.exists()
    if there and any(_exists(source) and path.samefile(source) for source in sources):
        raise OutputError(f"the output {path} is itself an input", "Name another file.")
    refuse_no_place(path)
    if not path.parent.is_dir():
        what = "is not a folder" if path.parent.exists() else "does not exist"
        raise OutputError(
            f"{path} cannot be written: the folder {path.parent} {what}",
            "Make the folder first, or name a file in another.",
        )
    with _output_errors(path), Scratch(path.parent):
        pass


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):  # of a name that is too long for one, as a text that names no file may be
        return path.exists()
    return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# -- reading ------------------------------------------------------------------------------------------------


def _read_proto(path: Path) -> tuple[onnx.ModelProto, Mapping[str, Bytes]]:
    """The model, and the bytes of those weights that were left in the file: the larger ones of a large model."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]  # has no types

    try:
        refuse_no_file(path)
        data, views = read_apart(path, SPILL_BYTES)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "Check the path and its permissions.") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        begun = data[:1] == b"\x08"  # field 1 (ir_version) as a varint: how every ONNX writer begins
        size = f"({path.stat().st_size:,} bytes)"
        if not begun:
            raise no_onnx(path, data, f" {size}", "Name the .onnx file of a model.") from error
        raise ModelError(
            f"{path} is cut short or damaged {size}", "Copy or export the file again and compare its size."
        ) from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(
            f"{path} is no whole ONNX model: it holds no graph with outputs ({path.stat().st_size:,} bytes)",
            "Name the .onnx file of a model; if this is one, copy or export it again and compare its size.",
        )
    return proto, views


def _external_tensors(graph: onnx.GraphProto, views: Collection[str] = ()) -> Iterator[onnx.TensorProto]:
    """Every tensor in external data; not the weights named in `views`, which lie in the model file itself."""
    for tensor in graph.initializer:
        if tensor.data_location == tensor.EXTERNAL and tensor.name not in views:
            yield tensor
    for node in graph.node:
        for attribute in node.attribute:
            tensors = [attribute.t] if attribute.HasField("t") else attribute.tensors
            yield from (t for t in tensors if t.data_location == t.EXTERNAL)
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _external_tensors(body)


def _check_external(tensor: onnx.TensorProto, path: Path, folder: Path) -> None:
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    target = folder / location
    if not location or Path(location).is_absolute() or not target.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"{path}: weight {tensor.name!r} points outside the model's folder, to {location!r}",
            "onnxq does not follow such paths. Put the data file (not a link to it) beside the model.",
        )
    if not target.is_file():
        raise ModelError(
            f"{path}: the external data file {location!r} of weight {tensor.name!r} is missing",
            f"Put it beside the model, into {folder.absolute()}",
        )
    size, needed = target.stat().st_size, tensor_bytes(tensor)
    try:
        offset = int(info.get("offset", 0))
        length = int(info.get("length", size - offset))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or length != needed:
        raise ModelError(
            f"{path}: weight {tensor.name!r} needs {needed:,} bytes, but its entry says offset "
            f"{info.get('offset', 0)!s}, length {info.get('length', 'none')!s} in {location!r}",
            "The model and its data file do not belong together, or the model is damaged. Copy or export both again.",
        )
    if offset + length > size:
        raise ModelError(
            f"{path}: the external data file {location!r} is too short for weight {tensor.name!r}: "
            f"{size:,} bytes, {offset + length:,} needed",
            "Copy the data file again; it was cut short.",
        )


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]


# -- writing ------------------------------------------------------------------------------------------------


def _write(graph: Graph, target: Path, data_name: str) -> None:
    """Save with external data, leaving the graph's own (lazy) weights as they are."""
    ir.save(graph.model, target, format="protobuf", external_data=data_name)


def _check(graph: Graph, path: Path) -> None:
    """Show the file written to onnx.checker, or a stand-in beside it.

    That of a large model, or of one with many bodies, has its weights in the file itself, of which the checker would
    make copies in memory; that of one with plugins or without ranks, which onnx cannot know, has none of those.
    """
    import onnx

    proto, unknown = None, needs_stand_in(graph) or any(v.shape is None for v in (*graph.inputs, *graph.outputs))
    large = weight_bytes(graph) > SPILL_BYTES or sum(1 for _ in graph.parts()) > MOST_BODIES
    if large or unknown:
        found = with_stubs(graph.model, path.name)[0] if large else None
        proto = onnx.load(path, load_external_data=False) if found is None else ir.to_proto(found)
        if unknown:
            stand_in(proto)
            ranked(proto)
        path = path.with_name(f"check-{path.name}")
        onnx.save(proto, path)
    try:
        check_fully(path, proto)
    except Exception as error:  # ValidationError, InferenceError and others from C++
        raise ModelError(
            f"onnx.checker refuses the quantized model: {' '.join(str(error).split())[:400]}",
            "If it accepts the float model, please report this with the model's structure.",
        ) from error


def _move(aside: Path, files: Sequence[Path]) -> None:
    """Into place, external data first, under a name of its own: a reader of the old model finds that of the old one."""
    known = files[0].exists()  # if it is external data, the digest in its name says that it holds the same
    for moved, file in enumerate(files):
        try:
            (aside / file.name).replace(file)
        except OSError:
            if moved == 1 and not known and files[0].suffix == ".data":
                files[0].unlink()
            raise


def _drop_stale_data(path: Path, keep: set[Path]) -> None:
    for old in path.parent.glob(f"{_glob_literal(path.name)}.{'[0-9a-f]' * 12}.data"):
        if old.resolve() not in {path.resolve() for path in keep}:
            old.unlink()


def _glob_literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {what_failed(error)}",
            "Choose a writable folder with enough room, with -o.",
        ) from error
