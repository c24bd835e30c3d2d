"""``memorysam recipes``: list, show, copy, check and compare recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memorysam_cli.commands import options
from memorysam_cli.commands.options import Json, Quiet, Set, Verbose, begin
from memorysam_cli.errors import UsageError
from memorysam_cli.text import command, counted

if TYPE_CHECKING:
    from memorysam_cli import recipe as recipes

SCHEMA_VERSION = 1

app = typer.Typer(help="List, show, copy, check and compare recipes.", no_args_is_help=True)
EXAMPLES = {
    "": [
        ("recipes list", "those that come with memorysam"),
        ("recipes copy deliver mine.yaml", "your own recipe"),
    ],
    "list": [
        ("recipes list", "with their scores"),
        ("recipes list --json", "for a script"),
    ],
    "show": [
        ("recipes show deliver", "every value"),
        ("recipes show deliver --set train.epochs=50", "with a change"),
    ],
    "copy": [
        ("recipes copy deliver mine.yaml", "extends deliver, with each key explained"),
        ("recipes copy deliver mine.yaml --set train.epochs=50", "with a change"),
    ],
    "check": [
        ("recipes check mine.yaml", "ok, or what is wrong"),
        ("recipes check mine.yaml --set optim.lr=1e-4", "with a change"),
    ],
    "diff": [
        ("recipes diff deliver deliver-rgbd", "two that come with memorysam"),
        ("recipes diff deliver runs/latest/recipe.yaml", "what a run changed"),
    ],
    "schema": [
        ("recipes schema", "JSON Schema, for editors"),
        ("recipes schema > recipe.schema.json", "as a file"),
    ],
}

NameOrFile = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A shipped recipe's name, or a .yaml file.",
        autocompletion=options.recipe_names,
        callback=options.recipe_must_exist,
    ),
]


@app.command("list")
def list_recipes(json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """List the recipes that come with memorysam.

    Shows the published mIoU in % and its split. Memory is the measured peak of a training run, if known; `memorysam
    plan` counts it for your machine.
    """
    from memorysam_cli import recipe as recipes
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    found = {name: recipes.read(name) for name in recipes.shipped()}
    if json:
        rows = [
            {
                "name": name,
                "dataset": each.recipe.data.dataset,
                "modalities": list(each.recipe.data.modalities),
                "backbone": each.recipe.model.backbone,
                "epochs": each.recipe.train.epochs,
                "reported": each.reported and each.reported.model_dump(mode="json"),
                "measured": each.measured and each.measured.model_dump(mode="json"),
                "about": each.recipe.about,
            }
            for name, each in found.items()
        ]
        console.answer({"schema_version": SCHEMA_VERSION, "recipes": rows})
        return
    console.table(
        ["recipe", "modalities", "epochs", "reported mIoU", "memory"],
        [[name, *_cells(each)] for name, each in found.items()],
    )
    for name, each in found.items():
        console.say(f"{name}: {each.recipe.about} ({each.recipe.model.backbone}, {each.recipe.data.dataset})")


def _cells(found: recipes.Document) -> list[object]:
    """The cells of a recipe's row after its name."""
    claim, need = found.reported, found.measured
    return [
        ", ".join(found.recipe.data.modalities),
        found.recipe.train.epochs,
        "–" if claim is None else f"{claim.miou:.2f} ({claim.split})",
        "–" if need is None else f"{need.memory_gb:.2g} GB",
    ]


@app.command("show")
def show_recipe(
    name: NameOrFile,
    overrides: Set = None,
    changes: Annotated[
        bool, typer.Option("--changes", help="Only what differs from the recipe that it extends (or from itself).")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Print a recipe with every value, as YAML to edit and train.

    With --changes, print only what differs from the extended recipe. If it extends none, print what --set changes, as a
    short file that extends NAME.
    """
    from memorysam_cli import recipe as recipes
    from memorysam_cli.recipe import comparing
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    found = recipes.read(name, overrides or ())
    if not changes:
        if json:
            value = found.recipe.model_dump(mode="json")
            console.answer({"schema_version": SCHEMA_VERSION, "recipe": value, "extends": found.parent})
        else:
            console.show_document(found.recipe.to_yaml().rstrip("\n"))
        return
    parent = found.parent or name
    before = recipes.load(parent)
    differing = comparing.differences(before, found.recipe)
    if json:
        console.answer(
            {"schema_version": SCHEMA_VERSION, "extends": parent, "changes": {each.key: each.b for each in differing}}
        )
        return
    if not differing:
        console.note(f"nothing differs from {parent}")
    console.show_document(comparing.changes_yaml(parent, before, found.recipe).rstrip("\n"))


@app.command("copy")
def copy_recipe(
    name: NameOrFile,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The .yaml file to be written.")],
    overrides: Set = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Also write the JSON Schema beside FILE, and name it there for editors.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", "--force", help="Replace FILE if it exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write your own recipe that extends NAME.

    It lists every key with its meaning. All values except those of --set are commented out: remove the # from what you
    change.
    """
    from memorysam_cli.recipe import comparing, reading
    from memorysam_cli.report import console
    from memorysam_cli.storage import atomic, documents

    begin(json=json, verbose=verbose, quiet=quiet)
    copy = comparing.make_copy(name, out, overrides=overrides or (), has_schema=schema)
    beside = out.parent / comparing.SCHEMA_FILE
    if out.exists():
        if out.samefile(reading.find(name)):
            raise UsageError(f"{out}: is the recipe that is read; give another name")
        if not overwrite:
            raise UsageError(f"{out}: exists already; give another name, or --overwrite to replace it")
    if schema:
        text = documents.to_json(comparing.json_schema(), indent=2) + "\n"
        if beside.exists() and not overwrite and beside.read_bytes() != text.encode():
            raise UsageError(f"{beside}: exists already with other content; move it, or --overwrite to replace it")
        atomic.write_text(beside, text)
    atomic.write_text(out, copy.text)
    if json:
        console.answer(
            {
                "schema_version": SCHEMA_VERSION,
                "out": str(out),
                "extends": copy.extends,
                "changes": copy.changes,
                "schema": str(beside) if schema else None,
            }
        )
        return
    console.say(str(out))
    console.note(
        f"extends {copy.extends}, {counted(copy.changes, 'value')} changed; edit it, then: "
        f"{command('recipes', 'check', out)}"
    )


@app.command("check")
def check_recipe(
    name: NameOrFile, overrides: Set = None, json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Check a recipe: 'ok', or exit code 2 and what is wrong with it."""
    from memorysam_cli import recipe as recipes
    from memorysam_cli.recipe import comparing
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    found = recipes.read(name, overrides or ())
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "name": found.recipe.name, "ok": True})
    else:
        console.say("ok")
    if found.parent is not None:
        differing = [each.key for each in comparing.differences(recipes.load(found.parent), found.recipe)]
        changed = f"changes {', '.join(differing)}" if differing else "changes nothing yet"
        console.note(f"extends {found.parent}, {changed}")


@app.command("diff")
def diff_recipes(
    a: NameOrFile, b: NameOrFile, json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Compare two recipes: the keys whose values differ.

    Default values are compared too. The exit code is 0 whether they differ or not. The recipe of a run is its
    recipe.yaml.
    """
    from memorysam_cli import recipe as recipes
    from memorysam_cli.recipe import comparing
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    found = comparing.differences(recipes.load(a), recipes.load(b))
    if json:
        rows = [{"key": each.key, "a": each.a, "b": each.b} for each in found]
        console.answer({"schema_version": SCHEMA_VERSION, "a": a, "b": b, "differences": rows})
    elif found:
        console.table(
            ["key", a, b], [[each.key, comparing.yaml_value(each.a), comparing.yaml_value(each.b)] for each in found]
        )
    else:
        console.say("no difference")


@app.command("schema")
def print_schema(json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Print the JSON Schema of recipes, for editors.

    Editors use it to complete and explain keys. For VS Code (YAML extension), the first line of a recipe refers to it:
    `# yaml-language-server: $schema=recipe.schema.json`, as `recipes copy --schema` writes it. All keys:
    docs/recipe-keys.md.
    """
    from memorysam_cli.recipe import comparing
    from memorysam_cli.report import console
    from memorysam_cli.storage import documents

    begin(json=json, verbose=verbose, quiet=quiet)
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "schema": comparing.json_schema()})
    else:
        console.show_document(documents.to_json(comparing.json_schema(), indent=2))
