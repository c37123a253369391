"""`paceline predict` and `paceline export`: what a run's model is used for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.run import Json
from paceline.cli.show import err, out, percent, print_json, table
from paceline.core.errors import ConfigError
from paceline.core.parsing import pairs

if TYPE_CHECKING:
    from paceline.results.predictor import Predictor

__all__ = ["export", "predict"]

SHOWN = 10
"""Predictions that are printed where no file is written."""

Client = Annotated[
    int | None,
    typer.Option("--client", min=0, help="this client's own model, of a method that personalises models", show_default="none"),
]
Modules = Annotated[
    list[str] | None,
    typer.Option("--module", help="installed module that the model's class may come from; repeatable", show_default="none"),
]
RUN = typer.Argument(metavar="RUN", help="folder of a run, or a client's folder of its own model", show_default=False)


def predict(
    run: Annotated[Path, RUN],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="a table, a folder of pictures or texts, or an array (.npy)", show_default=False)
    ],
    save: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv", help="file of the predictions", show_default="not saved")
    ] = None,
    client: Client = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="OWN=NAME", help="the schema's name of a column of the file; repeatable", show_default="none"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            metavar="NAME=VALUE",
            help="how the file is read, such as na=N/A; repeatable",
            show_default="the run's",
        ),
    ] = None,
    module: Modules = None,
    json: Json = False,
) -> None:
    """Predict with a run's model: read FILE by the run's schema, and write the class and its scores, or a number, of each row."""
    made = _predictor(run, client, tuple(module or ()))
    columns = {own.strip(): name.strip() for own, _, name in (text.partition("=") for text in column or ())}
    if "" in columns.values():
        raise ConfigError("--column takes OWN=NAME: a column of the file and the schema's name of it")
    found = made.predict(file, columns=columns, advice="name it with --column OWN=NAME", **_reading(option))
    for note in found.notes:
        if note.startswith("unknown") or "does not have" in note or "without a class" in note:
            err().print(f"{file}: {note}", markup=False, soft_wrap=True)
    if save is not None:
        found.to_csv(save)
    right = found.accuracy
    if json:
        facts = {"samples": len(found), "kind": found.kind, "accuracy": right, "out": save and str(save)}
        print_json(facts if save is not None else facts | {"predictions": list(found.rows())})
        return
    console = out()
    if save is None:
        rows = list(found.rows())
        shown = table(f"Predictions of {run.name}", *rows[0], right=tuple(n for n in rows[0] if n.startswith("score")))
        for row in rows[:SHOWN]:
            shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(shown)
        if len(rows) > SHOWN:
            console.print(f"the first {SHOWN} of {len(rows)} samples; save all with --out FILE.csv")
    else:
        console.print(f"{len(found)} predictions: {save}", markup=False, soft_wrap=True)
    if right is not None:
        console.print(f"accuracy on the classes in the file: {percent(right)}")


def export(
    run: Annotated[Path, RUN],
    to: Annotated[str, typer.Option("--to", help="form of the file: state-dict, torch-export or onnx")],
    save: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="the file", show_default="in RUN")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="leave numbers standardised, as the module gives them")] = False,
    client: Client = None,
    module: Modules = None,
    json: Json = False,
) -> None:
    """Write a run's model in a form that other programs read, and compare its outputs with the model's on samples."""
    from paceline.results.export import export as write
    from paceline.results.export import place, standardized

    path = place(to, save, run, client)
    made = _predictor(run, client, tuple(module or ()))
    written = write(made, to, path, raw)  # type: ignore[arg-type]
    scaling = standardized(made, to, raw)  # type: ignore[arg-type]
    if json:
        print_json({"file": str(written), "to": to} | ({} if scaling is None else {"scaling": list(scaling)}))
        return
    out().print(str(written), markup=False, soft_wrap=True)
    if scaling is not None:
        mean, deviation = scaling
        err().print(
            f"its numbers are standardised: multiply by {deviation:.9g} and add {mean:.9g} for the unit of the target",
            soft_wrap=True,
        )


def _predictor(run: Path, client: int | None, modules: tuple[str, ...]) -> Predictor:
    """Return the model of a folder; only a simulated client's own model needs the code and the data of the run."""
    from paceline.results.card import CARD
    from paceline.results.predictor import load_predictor

    if client is None and ((run / CARD).is_file() or not (run / "config.toml").is_file()):
        return load_predictor(run, modules=modules)
    from paceline.run import load

    return load(run).predictor(client)


def _reading(option: list[str] | None) -> dict[str, Any]:
    from paceline.core.errors import UnknownNameError
    from paceline.tasks.inputs import READING

    given = pairs(option)
    for name in given:
        if name not in READING:
            raise UnknownNameError("option of reading", name, READING)
    return {name: str(value) for name, value in given.items()}
