"""Pictures and texts by a schema: classes by name, and the form of a sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paceline.core.errors import SchemaError
from paceline.data.mapping import Names
from paceline.data.raw import Array, Part, RawData
from paceline.data.schema import PictureForm, Schema, Target, Text

__all__ = ["conform", "described"]


def described(data: RawData, content: str) -> Schema:
    """Return the schema of a data set: the reader's, or one of the arrays' form and the classes.

    Args:
        data: the data set.
        content: image, text or table.
    """
    if data.schema is not None:
        return data.schema
    target, x = Target(classes=data.classes), data.train.x
    if content == "image":
        picture = PictureForm(height=x.shape[1], width=x.shape[2], channels=1 if x.ndim == 3 else x.shape[3])
        return Schema(content="image", picture=picture, target=target)
    return Schema(content="text", text=Text(length=x.shape[1], symbols=len(data.classes)), target=target)


def conform(data: RawData, schema: Schema, names: Names, where: str) -> RawData:
    """Return a site's data set with the codes of a schema.

    Args:
        data: the data set as its reader returns it.
        schema: the schema.
        names: the site's names.
        where: the files, for messages.

    Raises:
        SchemaError: lists all differences.
    """
    own = described(data, schema.content)
    shared: list[str] = []
    details: list[str] = []
    form = _form_difference(schema, own)
    if form:
        shared.append(form)
        details.append(form)
        raise SchemaError(where, shared, details)
    if schema.target.kind != own.target.kind:
        text = f"the target is a {schema.target.kind} in the schema, but a {own.target.kind} in these files"
        shared.append(text)
        details.append(text)
        raise SchemaError(where, shared, details)
    columns = ("", schema.target.name, own.target.name)
    mapped = [next((names.values[c][name] for c in columns if name in names.values.get(c, {})), name) for name in data.classes]
    present = set(np.unique(np.concatenate([part.y.ravel() for part in (data.train, data.test) if part is not None])).tolist())
    if schema.target.kind != "number":
        unknown = [name for code, name in enumerate(mapped) if name not in schema.target.classes and code in present]
        if unknown:
            known = ", ".join(schema.target.classes[:10]) + (", ..." if len(schema.target.classes) > 10 else "")
            place = f"[data.values.{schema.target.name or repr('')}]"
            text = f"these files have classes that the schema does not have ({known}); map them in {place}"
            shared.append(text)
            details.append(f"{text} (found: {', '.join(map(repr, unknown[:10]))})")
    if shared:
        raise SchemaError(where, shared, details)
    codes = {name: code for code, name in enumerate(schema.target.classes)}
    table = np.array([codes.get(name, 0) for name in mapped] or [0])
    recoded = [None if p is None else _recoded(p, table, schema.target.kind) for p in (data.train, data.test)]
    assert recoded[0] is not None
    return replace(data, train=recoded[0], test=recoded[1], classes=schema.target.classes, schema=schema)


def _recoded(part: Part, table: Array, kind: str) -> Part:
    if kind == "number":
        return part
    if kind == "mask":
        whole = np.arange(256)  # of pixels that do not count, too
        whole[: len(table)] = table
        return replace(part, y=whole[part.y].astype(np.uint8))
    return replace(part, y=table[part.y].astype(np.int64))


def _form_difference(schema: Schema, own: Schema) -> str:
    """Return how samples differ in form; empty if they do not."""
    if schema.content != own.content:
        return f"the run needs {schema.content}s, but these files have {own.content}s"
    if schema.picture is not None and own.picture is not None:
        if schema.picture.form != own.picture.form:
            return f"the schema's pictures have {schema.picture.form}, these have {own.picture.form}"
        if schema.picture.top != own.picture.top:
            return f"full brightness is {schema.picture.top:g} in the schema, but {own.picture.top:g} in these files"
    if schema.text is not None and schema.text != own.text:
        kind = f"codes of {schema.text.symbols}{' words' if schema.text.words else ''}"
        return f"the schema's texts have {schema.text.length} {kind}, these another form"
    return ""
